# Completion of gpudctl for bash. Install as /usr/share/bash-completion/completions/gpudctl.

_gpudctl_words() {
    # Names of models may hold colons and slashes, at which readline breaks words.
    local IFS=$'\n' found=() word
    while IFS= read -r word; do
        [[ $word == "$2"* ]] && found+=("$word")
    done <<<"$1"
    COMPREPLY=("${found[@]}")
    if [[ $2 == *:* && $COMP_WORDBREAKS == *:* ]]; then
        local colons=${2%"${2##*:}"} index
        for index in "${!COMPREPLY[@]}"; do
            COMPREPLY[index]=${COMPREPLY[index]#"$colons"}
        done
    fi
}

_gpudctl_ask() {
    "${COMP_WORDS[0]}" "${_gpudctl_bus[@]}" _complete "$1" 2>/dev/null
}

_gpudctl() {
    local current=${COMP_LINE:0:COMP_POINT}
    current=${current##*[[:space:]]}
    local -a _gpudctl_bus=()
    local everywhere=$'--user\n--system\n--json\n--no-color\n--help'
    local commands=$'status\nmodels\nload\nunload\nwait\nrun\ncancel\nreset\nlog\nconfig\nreload\ndoctor\nversion'
    # Words as the user sees them: COMP_WORDS is broken at colons.
    local line=${COMP_LINE:0:COMP_POINT}
    local -a words
    read -r -a words <<<"$line"
    [[ -n $current ]] && unset "words[$((${#words[@]} - 1))]"
    local command='' previous='' action='' word
    for word in "${words[@]:1}"; do
        case $word in
            --user | --system) _gpudctl_bus=("$word") ;;
            --)
                if [[ $command == run ]]; then
                    COMPREPLY=($(compgen -c -f -- "$current"))
                    return
                fi
                ;;
            -*) ;;
            *)
                if [[ -z $command ]]; then
                    command=$word
                elif [[ -z $action ]]; then
                    action=$word
                fi
                ;;
        esac
        previous=$word
    done
    if [[ -z $command ]]; then
        _gpudctl_words "$commands"$'\n'"$everywhere"$'\n--version' "$current"
        return
    fi
    case $previous in
        --hold) _gpudctl_words "$(_gpudctl_ask models)" "$current" && return ;;
        --state) _gpudctl_words $'ready\nunloaded' "$current" && return ;;
        --file | --config)
            COMPREPLY=($(compgen -f -- "$current"))
            return
            ;;
        --context | --idle-timeout | --timeout | --why | --since | --lines | -n) return ;;
    esac
    local options=''
    case $command in
        models) options=$'--loaded\n--aliases' ;;
        load) options=$'--context\n--idle-timeout\n--no-evict\n--no-wait' ;;
        unload) options=$'--all\n--force\n--no-wait' ;;
        wait) options=$'--state\n--timeout' ;;
        run) options=$'--hold\n--why\n--' ;;
        log) options=$'--follow\n--lines\n--since\n--explain' ;;
        config) options='--file' ;;
        doctor) options='--config' ;;
        version) options='--daemon' ;;
    esac
    if [[ $current == -* ]]; then
        _gpudctl_words "$options"$'\n'"$everywhere" "$current"
        return
    fi
    case $command in
        status | load | wait | reset | log) _gpudctl_words "$(_gpudctl_ask models)" "$current" ;;
        unload) _gpudctl_words "$(_gpudctl_ask loaded)" "$current" ;;
        cancel) _gpudctl_words "$(_gpudctl_ask jobs)" "$current" ;;
        config)
            case $action in
                '') _gpudctl_words $'check\nshow' "$current" ;;
                check) COMPREPLY=($(compgen -f -- "$current")) ;;
                show) _gpudctl_words "$(_gpudctl_ask keys)" "$current" ;;
            esac
            ;;
        *) _gpudctl_words "$options" "$current" ;;
    esac
}

complete -o nosort -F _gpudctl gpudctl
