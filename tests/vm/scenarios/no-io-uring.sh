# The essentials where io_uring is forbidden, as hardened hosts and containers do.
# machine: about_s=120
check "forbid io_uring" sysctl -q -w kernel.io_uring_disabled=2
daemon_start
has "the daemon says what it does without" "io_uring|epoll" cat $LOG
essentials "no io_uring"
done_testing
