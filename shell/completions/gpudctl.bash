# Completion of gpudctl for bash. Install as /usr/share/bash-completion/completions/gpudctl.

_gpudctl_words() {
    local IFS=$' \t\n' word
    COMPREPLY=()
    for word in $1; do
        [[ $word == "$2"* ]] && COMPREPLY+=("$word")
    done
    # Names of models may hold colons, at which readline breaks words: it wants what follows the last one.
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
    local everywhere='--user --system --json --no-color --help'
    local commands='status ps top vram queue explain models pull fetch load unload restart switch wait run chat bench yield resume cancel'
    commands+=' reset log budget estimate storage config import key shell-hook reload doctor version'
    # Words as the user sees them: COMP_WORDS is broken at colons.
    local line=${COMP_LINE:0:COMP_POINT}
    local -a words
    read -r -a words <<<"$line"
    [[ -n $current ]] && unset "words[$((${#words[@]} - 1))]"
    local command='' previous='' action='' object='' word
    for word in "${words[@]:1}"; do
        case $word in
            --user | --system) _gpudctl_bus=("$word") ;;
            --)
                if [[ $command == run ]]; then
                    mapfile -t COMPREPLY < <(compgen -c -f -- "$current")
                    return
                fi
                ;;
            -*) ;;
            *)
                if [[ -z $command ]]; then
                    command=$word
                elif [[ -z $action ]]; then
                    action=$word
                elif [[ -z $object ]]; then
                    object=$word
                fi
                ;;
        esac
        previous=$word
    done
    if [[ -z $command ]]; then
        _gpudctl_words "$commands $everywhere --version" "$current"
        return
    fi
    case $previous in
        --hold | --allow | --keep) _gpudctl_words "$(_gpudctl_ask models)" "$current" && return ;;
        --may) _gpudctl_words 'use manage' "$current" && return ;;
        --state) _gpudctl_words 'ready unloaded' "$current" && return ;;
        --priority) _gpudctl_words 'low normal high critical' "$current" && return ;;
        --engine)
            if [[ $command == import ]]; then
                _gpudctl_words 'ollama llama_server' "$current"
            else
                _gpudctl_words "$(_gpudctl_ask engines)" "$current"
            fi
            return
            ;;
        --gpu) _gpudctl_words "$(_gpudctl_ask gpus)" "$current" && return ;;
        --file | --config | --binary | --key-file | --output | --environment | --directory | --models)
            mapfile -t COMPREPLY < <(compgen -f -- "$current")
            return
            ;;
        --gpus | --context | --ctx | --layers | --idle-timeout | --timeout | --wait | --for) return ;;
        --vram | --why | --rate | --since | --lines | -n) return ;;
        --map | --name | --prefix | --revision | --sha256 | --tag) return ;;
        --to)
            mapfile -t COMPREPLY < <(compgen -d -- "$current")
            return
            ;;
        --url | --system-prompt | --tokens | --requests | --parallel) return ;;
    esac
    local options=''
    case $command in
        models) options='--loaded --aliases --tag --all --yes' ;;
        switch) options='--keep' ;;
        explain) options='--lines' ;;
        pull) options='--to --mmproj --revision --context --yes --force --url --key-file' ;;
        fetch) options='--sha256 --to --name --force' ;;
        load) options='--context --idle-timeout --no-evict --priority --wait --engine --no-wait' ;;
        unload) options='--all --force --no-wait' ;;
        restart) options='--force' ;;
        wait) options='--state --timeout' ;;
        run) options='--hold --vram --gpu --wait --priority --why --' ;;
        ps | top) options='--url --key-file' ;;
        chat) options='--system-prompt --tokens --url --key-file' ;;
        bench) options='--requests --parallel --tokens --url --key-file' ;;
        yield) options='--for --why --no-wait' ;;
        budget) options='--ctx --layers' ;;
        log) options='--follow --lines --since --explain' ;;
        estimate) options='--formula --gpus --binary --' ;;
        config) options='--file' ;;
        import)
            options='--output --force --check --directory --environment --map --name --prefix --models --engine'
            ;;
        storage) options='--base --root --depth --duplicates --link --dry-run --yes --least --fail' ;;
        key) options='--allow --rate --priority --may --file' ;;
        doctor) options='--config' ;;
        version) options='--daemon' ;;
    esac
    if [[ $current == -* ]]; then
        _gpudctl_words "$options $everywhere" "$current"
        return
    fi
    case $command in
        models)
            case $action in
                '') _gpudctl_words 'list info scan set-priority tag untag alias unalias note rm forget' "$current" ;;
                scan) ;;
                set-priority)
                    if [[ -z $object ]]; then
                        _gpudctl_words "$(_gpudctl_ask models)" "$current"
                    else
                        _gpudctl_words 'low normal high critical default' "$current"
                    fi
                    ;;
                list) _gpudctl_words "$(_gpudctl_ask models)" "$current" ;;
                *) [[ -z $object ]] && _gpudctl_words "$(_gpudctl_ask models)" "$current" ;;
            esac
            ;;
        status | explain | load | switch | wait | reset | log | chat | bench) _gpudctl_words "$(_gpudctl_ask models)" "$current" ;;
        unload) _gpudctl_words "$(_gpudctl_ask loaded)" "$current" ;;
        restart) _gpudctl_words "$(_gpudctl_ask restartable)" "$current" ;;
        cancel) _gpudctl_words "$(_gpudctl_ask jobs)" "$current" ;;
        shell-hook) [[ -z $action ]] && _gpudctl_words 'bash sh zsh fish' "$current" ;;
        pull) _gpudctl_words 'hf: ollama:' "$current" ;;
        budget)
            _gpudctl_words "$(_gpudctl_ask models)" "$current"
            local -a files
            mapfile -t files < <(compgen -f -- "$current")
            COMPREPLY+=("${files[@]}")
            ;;
        estimate) mapfile -t COMPREPLY < <(compgen -f -- "$current") ;;
        config)
            case $action in
                '') _gpudctl_words 'check show' "$current" ;;
                check) mapfile -t COMPREPLY < <(compgen -f -- "$current") ;;
                show) _gpudctl_words "$(_gpudctl_ask keys)" "$current" ;;
            esac
            ;;
        import)
            if [[ -z $action ]]; then
                _gpudctl_words 'llama-swap llama-cpp-server nixos docker-env ollama' "$current"
            else
                mapfile -t COMPREPLY < <(compgen -f -- "$current")
            fi
            ;;
        storage) [[ -z $action ]] && _gpudctl_words 'init ls du clean-cache check' "$current" ;;
        key) [[ -z $action ]] && _gpudctl_words 'add list revoke' "$current" ;;
        *) _gpudctl_words "$options" "$current" ;;
    esac
}

complete -o nosort -F _gpudctl gpudctl
