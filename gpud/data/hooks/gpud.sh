# shellcheck shell=sh
# Registers an interactive shell with gpud, which then knows when it ends, by whatever cause: what only this shell has
# used is unloaded afterwards. For bash, and for sh and all like it; harmless where it is read twice, or by a script.
#
# One busctl in the background, which nobody waits for, says nothing, and starts nothing. There is no trap: gpud watches
# the process itself, so that kill -9 counts as "exit" does, and the traps of this shell are its user's own.
case $- in
*i*)
    if [ "${__gpud_shell-}" != "$$" ] && command -v busctl >/dev/null 2>&1; then
        __gpud_shell=$$
        # From a subshell that ends at once, so that the shell has no job to tell about.
        (
            case ${GPUD_BUS-} in user) bus=--user ;; *) bus=--system ;; esac
            busctl "$bus" --auto-start=no --timeout=5 --quiet call org.kernelcore.GpuD /org/kernelcore/GpuD \
                org.kernelcore.GpuD AttachSession 'a{sv}' 1 pid u "$$" </dev/null >/dev/null 2>&1 &
        )
    fi
    ;;
esac
