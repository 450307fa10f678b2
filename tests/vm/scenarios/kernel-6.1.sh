# The essentials on Debian 12's own kernel, which has an older io_uring.
# machine: kernel=6.1 about_s=110
has "this is 6.1" "^6\.1\." uname -r
daemon_start
essentials "6.1"
done_testing
