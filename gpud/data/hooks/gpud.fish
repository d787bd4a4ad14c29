# Registers an interactive fish with gpud, which then knows when it ends, by whatever cause: what only this shell has used
# is unloaded afterwards. Harmless where it is read twice.
#
# One busctl in the background, which nobody waits for, says nothing, and starts nothing. There is no fish_exit function:
# gpud watches the process itself, so that kill -9 counts as "exit" does.
if status is-interactive; and not set -q __gpud_shell; and command -q busctl
    set -g __gpud_shell $fish_pid
    set -l bus system
    test "$GPUD_BUS" = user; and set bus user
    command busctl --$bus --auto-start=no --timeout=5 --quiet call org.kernelcore.GpuD /org/kernelcore/GpuD \
        org.kernelcore.GpuD AttachSession 'a{sv}' 1 pid u $fish_pid </dev/null >/dev/null 2>&1 &
    disown $last_pid
end
