# Our initiator against the kernel's target: the whole conformance suite, on 512- and 4096-byte namespaces.
# machine: cpus=4 about_s=150
nvmet_start
modprobe loop
blocks=4096

# suite LABEL BLOCK_BYTES NQN PARAMETERS: runs it with /run/resize; each case is a check here.
suite() {
    local label=$1 line status
    "$CONFORM" "nvmf+tcp://127.0.0.1:4420/$3$4" "$2" --effort 300 --resize /run/resize >/run/suite 2>&1
    status=$?
    while IFS= read -r line; do
        case $line in
        'ok '*) ok "$label: ${line#ok }" ;;
        'not ok '*) line=${line#not ok }; not_ok "$label: ${line%%: *}" "${line#*: }" ;;
        *) echo "    $label: $line" ;;
        esac
    done </run/suite
    [ $status = 0 ] && ok "$label: the suite ran to its end" || not_ok "$label: the suite ran to its end" "status $status"
    # Commands that the kernel's target does not have, and loans, which a device over a network has none of.
    sed -n 's/^not applicable //p' /run/suite | sort | tr '\n' ',' >/run/left-out
    has "$label: only what the target lacks was left out" "^$left_out$" cat /run/left-out
}
left_out="compare,compare and write,compare and write against writes,compare and write counts,copy,loans held,verify,"

# disk LABEL BLOCK_BYTES PARAMETERS: a namespace on a loop device with these blocks.
disk() {
    local nqn=nqn.2026-01.test:$1 attributes=$NVMET/subsystems/nqn.2026-01.test:$1/namespaces/1
    truncate -s $((blocks * $2)) "/run/$1"
    loop=$(losetup --find --show --sector-size "$2" "/run/$1")
    nvmet_subsystem "$nqn" "CONF$2"
    nvmet_namespace "$nqn" 1 "$loop"
    nvmet_share "$nqn"
    cat >/run/resize <<END
#!/bin/bash
truncate -s \$((\$1 * $2)) /run/$1 && losetup -c $loop && echo 1 >$attributes/revalidate_size
END
    chmod +x /run/resize
    suite "$1" "$2" "$nqn" "$3"
}
nvmet_listen 4420
disk plain-512 512 ''
disk digests-4096 4096 '?hdgst=on&ddgst=on'
disk short-512 512 '?queue_depth=4&hdgst=on'

# The kernel's other back end, which reads and writes a file. Not on tmpfs, which knows no FALLOC_FL_ZERO_RANGE.
data_folder 100
file=$DATA/file-4096
nqn=nqn.2026-01.test:file-4096
truncate -s $((blocks * 4096)) $file
nvmet_subsystem $nqn CONFFILE
nvmet_namespace $nqn 1 $file
nvmet_share $nqn
cat >/run/resize <<END
#!/bin/bash
truncate -s \$((\$1 * 4096)) $file && echo 1 >$NVMET/subsystems/$nqn/namespaces/1/revalidate_size
END
suite file-4096 4096 $nqn ''
check_kernel_log
done_testing
