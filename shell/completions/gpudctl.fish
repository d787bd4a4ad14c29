# Completion of gpudctl for fish. Install as /usr/share/fish/vendor_completions.d/gpudctl.fish.

function __gpudctl_command --description 'The command on the line, if there is one'
    for word in (commandline -opc)[2..-1]
        if not string match -q -- '-*' $word
            echo $word
            return 0
        end
    end
    return 1
end

function __gpudctl_is --description 'Whether the command on the line is one of these'
    contains -- (__gpudctl_command; or echo none) $argv
end

function __gpudctl_is_action --description 'Whether the word behind the command is this one'
    set -l words (string match -v -- '-*' (commandline -opc)[2..-1])
    test (count $words) -ge 2; and test $words[2] = $argv[1]
end

function __gpudctl_count --description 'How many words there are, from the command on'
    count (string match -v -- '-*' (commandline -opc)[2..-1])
end

function __gpudctl_ask --description 'Words that gpudctl knows'
    set -l bus (string match -r -- '^--(?:user|system)$' (commandline -opc))
    gpudctl $bus _complete $argv[1] 2>/dev/null
end

complete -c gpudctl -f
complete -c gpudctl -l user -d 'Talk to the gpud of this session'
complete -c gpudctl -l system -d 'Talk to the gpud of this machine'
complete -c gpudctl -l json -d 'Print one JSON object, for programs'
complete -c gpudctl -l no-color -d 'No colors, even on a terminal'
complete -c gpudctl -s h -l help -d 'Show help'
complete -c gpudctl -n 'not __gpudctl_command' -l version -d 'Show the version'

complete -c gpudctl -n 'not __gpudctl_command' -a status -d 'Show the models, the GPUs and what is going on'
complete -c gpudctl -n 'not __gpudctl_command' -a ps -d 'Show what runs, for whom, how long and how fast'
complete -c gpudctl -n 'not __gpudctl_command' -a top -d 'Watch models, memory, queue and requests'
complete -c gpudctl -n 'not __gpudctl_command' -a vram -d 'Show who holds the memory of each GPU'
complete -c gpudctl -n 'not __gpudctl_command' -a queue -d 'Show who waits for memory'
complete -c gpudctl -n 'not __gpudctl_command' -a explain -d 'Say what was decided about a model, and why'
complete -c gpudctl -n 'not __gpudctl_command' -a models -d 'Show what models there are, and say something about them'
complete -c gpudctl -n 'not __gpudctl_command' -a pull -d 'Download a model from Hugging Face, or through Ollama'
complete -c gpudctl -n 'not __gpudctl_command' -a fetch -d 'Download a model file from a URL'
complete -c gpudctl -n 'not __gpudctl_command' -a load -d 'Load models and wait until they answer'
complete -c gpudctl -n 'not __gpudctl_command' -a unload -d 'Unload models and give their memory back'
complete -c gpudctl -n 'not __gpudctl_command' -a restart -d 'Unload models and load them again'
complete -c gpudctl -n 'not __gpudctl_command' -a switch -d 'Load one model in place of those that are loaded'
complete -c gpudctl -n 'not __gpudctl_command' -a wait -d 'Wait until a model is ready, or unloaded'
complete -c gpudctl -n 'not __gpudctl_command' -a run -d 'Run a command with a model loaded or memory claimed'
complete -c gpudctl -n 'not __gpudctl_command' -a chat -d 'Talk to a model'
complete -c gpudctl -n 'not __gpudctl_command' -a bench -d 'Measure how fast a model answers'
complete -c gpudctl -n 'not __gpudctl_command' -a yield -d 'Give the GPUs away: unload everything, load nothing'
complete -c gpudctl -n 'not __gpudctl_command' -a resume -d 'Take the GPUs back after yield'
complete -c gpudctl -n 'not __gpudctl_command' -a cancel -d 'Give up a load, an unload or a download that is going on'
complete -c gpudctl -n 'not __gpudctl_command' -a reset -d 'Forget the failures of a model'
complete -c gpudctl -n 'not __gpudctl_command' -a log -d 'Show what the journal says'
complete -c gpudctl -n 'not __gpudctl_command' -a budget -d 'Say whether a model fits, and what would make it fit'
complete -c gpudctl -n 'not __gpudctl_command' -a estimate -d 'Say what a model file would take of each memory'
complete -c gpudctl -n 'not __gpudctl_command' -a config -d 'Check the configuration, or show what is in effect'
complete -c gpudctl -n 'not __gpudctl_command' -a import -d 'Make a configuration of what another program was told'
complete -c gpudctl -n 'not __gpudctl_command' -a storage -d 'Look after the folders in which models are kept'
complete -c gpudctl -n 'not __gpudctl_command' -a key -d 'Make, list and revoke the API keys that let clients in'
complete -c gpudctl -n 'not __gpudctl_command' -a shell-hook -d 'Print what registers a shell with gpud, for dotfiles'
complete -c gpudctl -n 'not __gpudctl_command' -a reload -d 'Have the configuration read again'
complete -c gpudctl -n 'not __gpudctl_command' -a doctor -d 'Look for what is wrong with this installation'
complete -c gpudctl -n 'not __gpudctl_command' -a version -d 'Show the versions of gpudctl and of gpud'

complete -c gpudctl -n '__gpudctl_is status explain load switch wait reset log budget' -a '(__gpudctl_ask models)' -d model
complete -c gpudctl -n '__gpudctl_is unload' -a '(__gpudctl_ask loaded)' -d model
complete -c gpudctl -n '__gpudctl_is restart' -a '(__gpudctl_ask restartable)' -d 'model or engine'
complete -c gpudctl -n '__gpudctl_is cancel' -a '(__gpudctl_ask jobs)' -d job

complete -c gpudctl -n '__gpudctl_is models; and test (__gpudctl_count) -eq 1' -a 'list info scan set-priority tag untag alias unalias note rm forget'
complete -c gpudctl -n '__gpudctl_is models; and test (__gpudctl_count) -eq 2; and not __gpudctl_is_action scan' -a '(__gpudctl_ask models)' -d model
complete -c gpudctl -n '__gpudctl_is models; and test (__gpudctl_count) -gt 2; and __gpudctl_is_action list' -a '(__gpudctl_ask models)' -d model
complete -c gpudctl -n '__gpudctl_is models; and test (__gpudctl_count) -eq 3; and __gpudctl_is_action set-priority' -a 'low normal high critical default'
complete -c gpudctl -n '__gpudctl_is models' -l loaded -d 'Only those that are loaded'
complete -c gpudctl -n '__gpudctl_is models' -l aliases -d 'Their aliases too'
complete -c gpudctl -n '__gpudctl_is models' -l tag -x -d 'Only those that have this tag'
complete -c gpudctl -n '__gpudctl_is models' -l all -d 'Also adapters, and what cannot be loaded'
complete -c gpudctl -n '__gpudctl_is models' -s y -l yes -d 'Do not ask before files are deleted'
complete -c gpudctl -n '__gpudctl_is switch' -l keep -x -a '(__gpudctl_ask models)' -d 'Leave this one loaded'

complete -c gpudctl -n '__gpudctl_is load' -l context -x -d 'Tokens of context'
complete -c gpudctl -n '__gpudctl_is load' -l idle-timeout -x -d 'Unload it after this long without a request'
complete -c gpudctl -n '__gpudctl_is load' -l no-evict -d 'Rather fail than unload another model'
complete -c gpudctl -n '__gpudctl_is load unload yield' -l no-wait -d 'Return at once'

complete -c gpudctl -n '__gpudctl_is unload' -l all -d 'Every loaded model'
complete -c gpudctl -n '__gpudctl_is unload restart' -l force -d 'In spite of holds and running requests'

complete -c gpudctl -n '__gpudctl_is wait' -l state -x -a 'ready unloaded' -d 'What to wait for'
complete -c gpudctl -n '__gpudctl_is wait' -l timeout -x -d 'Give up after this long'

complete -c gpudctl -n '__gpudctl_is run' -l hold -x -a '(__gpudctl_ask models)' -d 'The model to load and hold'
complete -c gpudctl -n '__gpudctl_is run' -l vram -x -d 'Claim memory for the command'
complete -c gpudctl -n '__gpudctl_is run' -l gpu -x -a '(__gpudctl_ask gpus)' -d 'The GPU to claim it of'
complete -c gpudctl -n '__gpudctl_is run load' -l wait -x -d 'Wait for memory at most this long'
complete -c gpudctl -n '__gpudctl_is run load' -l priority -x -a 'low normal high critical' -d 'Whom to go before'
complete -c gpudctl -n '__gpudctl_is load' -l engine -x -a '(__gpudctl_ask engines)' -d 'Only by this of its engines'
complete -c gpudctl -n '__gpudctl_is run yield' -l why -x -d 'What others read about it'
complete -c gpudctl -n '__gpudctl_is run; and contains -- -- (commandline -opc)' -F -a '(__fish_complete_command)'

complete -c gpudctl -n '__gpudctl_is explain' -s n -l lines -x -d 'Only the last decisions'
complete -c gpudctl -n '__gpudctl_is yield' -l for -x -d 'Take them back after this long'
complete -c gpudctl -n '__gpudctl_is pull' -a 'hf: ollama:'
complete -c gpudctl -n '__gpudctl_is pull' -l mmproj -d 'With what it needs to see images'
complete -c gpudctl -n '__gpudctl_is pull' -l revision -x -d 'A branch, tag or commit'
complete -c gpudctl -n '__gpudctl_is pull' -l context -x -d 'Tokens of context for which to say what fits'
complete -c gpudctl -n '__gpudctl_is pull' -l yes -d 'Take the recommended one'
complete -c gpudctl -n '__gpudctl_is pull' -l url -x -d 'The door for the clients of Ollama'
complete -c gpudctl -n '__gpudctl_is pull' -l key-file -r -F -d 'The file with the API key'
complete -c gpudctl -n '__gpudctl_is fetch' -l sha256 -x -d 'What it must come to'
complete -c gpudctl -n '__gpudctl_is fetch' -l name -x -d 'What it is called'
complete -c gpudctl -n '__gpudctl_is pull fetch' -l to -x -a '(__fish_complete_directories)' -d 'The folder'
complete -c gpudctl -n '__gpudctl_is pull fetch' -l force -d 'Replace another file of the same name'
complete -c gpudctl -n '__gpudctl_is budget' -F
complete -c gpudctl -n '__gpudctl_is budget' -l ctx -x -d 'Tokens of context'
complete -c gpudctl -n '__gpudctl_is budget' -l layers -x -d 'Layers on the GPU'

complete -c gpudctl -n '__gpudctl_is log' -s f -l follow -d 'Go on with what is said from now on'
complete -c gpudctl -n '__gpudctl_is log' -s n -l lines -x -d 'Only the last messages'
complete -c gpudctl -n '__gpudctl_is log' -l since -x -d 'Only from then on'
complete -c gpudctl -n '__gpudctl_is log' -s x -l explain -d 'Add the explanations of the message catalog'

complete -c gpudctl -n '__gpudctl_is config; and not __gpudctl_is_action check; and not __gpudctl_is_action show' -a 'check show'
complete -c gpudctl -n '__gpudctl_is config; and __gpudctl_is_action check' -F
complete -c gpudctl -n '__gpudctl_is config; and __gpudctl_is_action show' -a '(__gpudctl_ask keys)'
complete -c gpudctl -n '__gpudctl_is config' -l file -r -F -d 'The file to read'

complete -c gpudctl -n '__gpudctl_is storage; and not __gpudctl_is_action init; and not __gpudctl_is_action ls; and not __gpudctl_is_action du; and not __gpudctl_is_action clean-cache; and not __gpudctl_is_action check' -a 'init ls du clean-cache check'
complete -c gpudctl -n '__gpudctl_is shell-hook' -a 'bash sh zsh fish'
complete -c gpudctl -n '__gpudctl_is storage' -l base -r -F -d 'The folder, in place of the configured one'
complete -c gpudctl -n '__gpudctl_is storage' -l root -r -F -d 'What stands before it'
complete -c gpudctl -n '__gpudctl_is storage' -l depth -x -d 'So many folders deep'
complete -c gpudctl -n '__gpudctl_is storage' -l duplicates -d 'Files that are there more than once'
complete -c gpudctl -n '__gpudctl_is storage' -l link -d 'Make the copies one file'
complete -c gpudctl -n '__gpudctl_is storage' -l dry-run -d 'Only say what would be removed'
complete -c gpudctl -n '__gpudctl_is storage' -s y -l yes -d 'Do not ask'
complete -c gpudctl -n '__gpudctl_is storage' -l least -x -d 'Warn below this'
complete -c gpudctl -n '__gpudctl_is storage' -l fail -d 'End with status 1 when there is less'
complete -c gpudctl -n '__gpudctl_is key; and not __gpudctl_is_action add; and not __gpudctl_is_action list; and not __gpudctl_is_action revoke' -a 'add list revoke'
complete -c gpudctl -n '__gpudctl_is key' -l allow -x -a '(__gpudctl_ask models)' -d 'A model that it is for'
complete -c gpudctl -n '__gpudctl_is key' -l rate -x -d 'How often it may ask'
complete -c gpudctl -n '__gpudctl_is key' -l priority -x -a 'low normal high critical' -d 'What its requests have'
complete -c gpudctl -n '__gpudctl_is key' -l may -x -a 'use manage' -d 'What it may'
complete -c gpudctl -n '__gpudctl_is key' -l file -r -F -d 'The file of keys'

complete -c gpudctl -n '__gpudctl_is estimate' -F
complete -c gpudctl -n '__gpudctl_is estimate' -l formula -d 'Calculate, and start no llama-server'
complete -c gpudctl -n '__gpudctl_is estimate' -l gpus -x -d 'How many GPUs there are'
complete -c gpudctl -n '__gpudctl_is estimate' -l binary -r -F -d 'The llama-server to ask'

complete -c gpudctl -n '__gpudctl_is ps top chat bench' -l url -x -d 'The door to ask'
complete -c gpudctl -n '__gpudctl_is ps top chat bench' -l key-file -r -F -d 'The file with the API key'
complete -c gpudctl -n '__gpudctl_is chat' -l system-prompt -x -d 'What the model is told first'
complete -c gpudctl -n '__gpudctl_is chat bench' -l tokens -x -d 'Tokens of an answer'
complete -c gpudctl -n '__gpudctl_is bench' -l requests -x -d 'How many are measured'
complete -c gpudctl -n '__gpudctl_is bench' -l parallel -x -d 'How many at the same time'

complete -c gpudctl -n '__gpudctl_is doctor' -l config -r -F -d 'The configuration to look at'
complete -c gpudctl -n '__gpudctl_is version' -l daemon -d 'Ask the running gpud too'

complete -c gpudctl -n '__gpudctl_is import' -a 'llama-swap llama-cpp-server nixos docker-env ollama' -d 'Whose settings'
complete -c gpudctl -n '__gpudctl_is import' -F
complete -c gpudctl -n '__gpudctl_is import' -l output -r -F -d 'Write the configuration there'
complete -c gpudctl -n '__gpudctl_is import' -l force -d 'Write it even if the file is there already'
complete -c gpudctl -n '__gpudctl_is import' -l check -d 'Only say what would become of each setting'
complete -c gpudctl -n '__gpudctl_is import' -l directory -r -F -d 'Where relative paths start'
complete -c gpudctl -n '__gpudctl_is import' -l environment -r -F -d 'Variables that the settings name'
complete -c gpudctl -n '__gpudctl_is import' -l map -x -d 'Where a path of a container is'
complete -c gpudctl -n '__gpudctl_is import' -l name -x -d 'What the model is called'
complete -c gpudctl -n '__gpudctl_is import' -l prefix -x -d 'The option whose value the file has'
complete -c gpudctl -n '__gpudctl_is import' -l models -r -F -d 'The store of Ollama'
complete -c gpudctl -n '__gpudctl_is import' -l engine -x -a 'ollama llama_server' -d 'What is to serve the models'
