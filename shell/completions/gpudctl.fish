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
complete -c gpudctl -l user -d 'Connect to your own gpud'
complete -c gpudctl -l system -d 'Connect to the gpud of this machine'
complete -c gpudctl -l json -d 'Print JSON instead of text'
complete -c gpudctl -l no-color -d 'Print no colors, even on a terminal'
complete -c gpudctl -s h -l help -d 'Show help'
complete -c gpudctl -n 'not __gpudctl_command' -l version -d 'Show the version'

complete -c gpudctl -n 'not __gpudctl_command' -a status -d 'Show models, GPUs and current activity'
complete -c gpudctl -n 'not __gpudctl_command' -a ps -d 'Show loaded models and their current requests'
complete -c gpudctl -n 'not __gpudctl_command' -a top -d 'Watch models, memory, queue and requests'
complete -c gpudctl -n 'not __gpudctl_command' -a vram -d 'Show who holds the memory of each GPU'
complete -c gpudctl -n 'not __gpudctl_command' -a queue -d 'Show who is waiting for memory'
complete -c gpudctl -n 'not __gpudctl_command' -a explain -d 'Explain the decisions about a model, with their numbers'
complete -c gpudctl -n 'not __gpudctl_command' -a models -d 'List and manage models'
complete -c gpudctl -n 'not __gpudctl_command' -a pull -d 'Download a model from Hugging Face or through Ollama'
complete -c gpudctl -n 'not __gpudctl_command' -a fetch -d 'Download a model file from a URL'
complete -c gpudctl -n 'not __gpudctl_command' -a load -d 'Load models and wait until they are ready'
complete -c gpudctl -n 'not __gpudctl_command' -a unload -d 'Unload models and free their memory'
complete -c gpudctl -n 'not __gpudctl_command' -a restart -d 'Unload models and load them again'
complete -c gpudctl -n 'not __gpudctl_command' -a switch -d 'Load a model and unload the others'
complete -c gpudctl -n 'not __gpudctl_command' -a wait -d 'Wait until a model is ready or unloaded'
complete -c gpudctl -n 'not __gpudctl_command' -a run -d 'Run a command with a model loaded or memory claimed'
complete -c gpudctl -n 'not __gpudctl_command' -a chat -d 'Chat with a model'
complete -c gpudctl -n 'not __gpudctl_command' -a bench -d 'Measure how fast a model answers'
complete -c gpudctl -n 'not __gpudctl_command' -a yield -d 'Yield the GPUs to other programs until resume'
complete -c gpudctl -n 'not __gpudctl_command' -a resume -d 'Take back the GPUs after yield'
complete -c gpudctl -n 'not __gpudctl_command' -a cancel -d 'Cancel a load, an unload or a download'
complete -c gpudctl -n 'not __gpudctl_command' -a reset -d 'Clear the failures of a model'
complete -c gpudctl -n 'not __gpudctl_command' -a log -d 'Show the log of gpud, or of one model'
complete -c gpudctl -n 'not __gpudctl_command' -a budget -d 'Check whether a model fits, and what would make it fit'
complete -c gpudctl -n 'not __gpudctl_command' -a estimate -d 'Estimate the memory that a model file needs'
complete -c gpudctl -n 'not __gpudctl_command' -a config -d 'Check or show the configuration'
complete -c gpudctl -n 'not __gpudctl_command' -a import -d 'Convert the configuration of another program'
complete -c gpudctl -n 'not __gpudctl_command' -a storage -d 'Manage the folders that hold the models'
complete -c gpudctl -n 'not __gpudctl_command' -a key -d 'Create, list and revoke API keys'
complete -c gpudctl -n 'not __gpudctl_command' -a shell-hook -d 'Print the hook that registers a shell with gpud'
complete -c gpudctl -n 'not __gpudctl_command' -a reload -d 'Reload the configuration'
complete -c gpudctl -n 'not __gpudctl_command' -a doctor -d 'Check this installation for problems'
complete -c gpudctl -n 'not __gpudctl_command' -a version -d 'Show the versions of gpudctl and gpud'

complete -c gpudctl -n '__gpudctl_is status explain load switch wait reset log budget' -a '(__gpudctl_ask models)' -d model
complete -c gpudctl -n '__gpudctl_is unload' -a '(__gpudctl_ask loaded)' -d model
complete -c gpudctl -n '__gpudctl_is restart' -a '(__gpudctl_ask restartable)' -d 'model or engine'
complete -c gpudctl -n '__gpudctl_is cancel' -a '(__gpudctl_ask jobs)' -d job

complete -c gpudctl -n '__gpudctl_is models; and test (__gpudctl_count) -eq 1' -a 'list info scan set-priority tag untag alias unalias note rm forget'
complete -c gpudctl -n '__gpudctl_is models; and test (__gpudctl_count) -eq 2; and not __gpudctl_is_action scan' -a '(__gpudctl_ask models)' -d model
complete -c gpudctl -n '__gpudctl_is models; and test (__gpudctl_count) -gt 2; and __gpudctl_is_action list' -a '(__gpudctl_ask models)' -d model
complete -c gpudctl -n '__gpudctl_is models; and test (__gpudctl_count) -eq 3; and __gpudctl_is_action set-priority' -a 'low normal high critical default'
complete -c gpudctl -n '__gpudctl_is models' -l loaded -d 'Only loaded models'
complete -c gpudctl -n '__gpudctl_is models' -l aliases -d 'List the aliases, too'
complete -c gpudctl -n '__gpudctl_is models' -l tag -x -d 'Only models with this tag'
complete -c gpudctl -n '__gpudctl_is models' -l all -d 'Include adapters and models that cannot be loaded'
complete -c gpudctl -n '__gpudctl_is models' -s y -l yes -d 'Do not ask for confirmation'
complete -c gpudctl -n '__gpudctl_is switch' -l keep -x -a '(__gpudctl_ask models)' -d 'Do not unload this model'

complete -c gpudctl -n '__gpudctl_is load' -l context -x -d 'Tokens of context'
complete -c gpudctl -n '__gpudctl_is load' -l idle-timeout -x -d 'Unload it after this long without a request'
complete -c gpudctl -n '__gpudctl_is load' -l no-evict -d 'Fail instead of unloading another model'
complete -c gpudctl -n '__gpudctl_is load unload yield' -l no-wait -d 'Return at once'

complete -c gpudctl -n '__gpudctl_is unload' -l all -d 'Unload all loaded models'
complete -c gpudctl -n '__gpudctl_is unload restart' -l force -d 'Override holds, and do not wait for requests'

complete -c gpudctl -n '__gpudctl_is wait' -l state -x -a 'ready unloaded' -d 'State to wait for'
complete -c gpudctl -n '__gpudctl_is wait' -l timeout -x -d 'Give up after this long'

complete -c gpudctl -n '__gpudctl_is run' -l hold -x -a '(__gpudctl_ask models)' -d 'Model to load and hold'
complete -c gpudctl -n '__gpudctl_is run' -l vram -x -d 'Claim memory for the command'
complete -c gpudctl -n '__gpudctl_is run' -l gpu -x -a '(__gpudctl_ask gpus)' -d 'GPU to claim it on'
complete -c gpudctl -n '__gpudctl_is run load' -l wait -x -d 'Wait for memory at most this long'
complete -c gpudctl -n '__gpudctl_is run load' -l priority -x -a 'low normal high critical' -d 'Queue priority'
complete -c gpudctl -n '__gpudctl_is load' -l engine -x -a '(__gpudctl_ask engines)' -d 'Use only this engine'
complete -c gpudctl -n '__gpudctl_is run yield' -l why -x -d 'Reason that others see'
complete -c gpudctl -n '__gpudctl_is run; and contains -- -- (commandline -opc)' -F -a '(__fish_complete_command)'

complete -c gpudctl -n '__gpudctl_is explain' -s n -l lines -x -d 'Show the last decisions'
complete -c gpudctl -n '__gpudctl_is yield' -l for -x -d 'Take back the GPUs after this long'
complete -c gpudctl -n '__gpudctl_is pull' -a 'hf: ollama:'
complete -c gpudctl -n '__gpudctl_is pull' -l mmproj -d 'Also download what the model needs to see images'
complete -c gpudctl -n '__gpudctl_is pull' -l revision -x -d 'Branch, tag or commit'
complete -c gpudctl -n '__gpudctl_is pull' -l context -x -d 'Check what fits with this context'
complete -c gpudctl -n '__gpudctl_is pull' -l yes -d 'Download the recommended model without asking'
complete -c gpudctl -n '__gpudctl_is pull' -l url -x -d 'Door for Ollama clients'
complete -c gpudctl -n '__gpudctl_is pull' -l key-file -r -F -d 'File with the API key'
complete -c gpudctl -n '__gpudctl_is fetch' -l sha256 -x -d 'Expected SHA-256'
complete -c gpudctl -n '__gpudctl_is fetch' -l name -x -d 'File name'
complete -c gpudctl -n '__gpudctl_is pull fetch' -l to -x -a '(__fish_complete_directories)' -d 'Target folder'
complete -c gpudctl -n '__gpudctl_is pull fetch' -l force -d 'Replace a different file of the same name'
complete -c gpudctl -n '__gpudctl_is budget' -F
complete -c gpudctl -n '__gpudctl_is budget' -l ctx -x -d 'Tokens of context'
complete -c gpudctl -n '__gpudctl_is budget' -l layers -x -d 'Layers on the GPU'

complete -c gpudctl -n '__gpudctl_is log' -s f -l follow -d 'Keep printing new messages'
complete -c gpudctl -n '__gpudctl_is log' -s n -l lines -x -d 'Only the last messages'
complete -c gpudctl -n '__gpudctl_is log' -l since -x -d 'Only messages from then on'
complete -c gpudctl -n '__gpudctl_is log' -s x -l explain -d 'Add explanations from the message catalog'

complete -c gpudctl -n '__gpudctl_is config; and not __gpudctl_is_action check; and not __gpudctl_is_action show' -a 'check show'
complete -c gpudctl -n '__gpudctl_is config; and __gpudctl_is_action check' -F
complete -c gpudctl -n '__gpudctl_is config; and __gpudctl_is_action show' -a '(__gpudctl_ask keys)'
complete -c gpudctl -n '__gpudctl_is config' -l file -r -F -d 'Configuration file'

complete -c gpudctl -n '__gpudctl_is storage; and not __gpudctl_is_action init; and not __gpudctl_is_action ls; and not __gpudctl_is_action du; and not __gpudctl_is_action clean-cache; and not __gpudctl_is_action check' -a 'init ls du clean-cache check'
complete -c gpudctl -n '__gpudctl_is shell-hook' -a 'bash sh zsh fish'
complete -c gpudctl -n '__gpudctl_is storage' -l base -r -F -d 'Base folder, instead of the configured one'
complete -c gpudctl -n '__gpudctl_is storage' -l root -r -F -d 'Prefix to the base folder'
complete -c gpudctl -n '__gpudctl_is storage' -l depth -x -d 'Levels to show'
complete -c gpudctl -n '__gpudctl_is storage' -l duplicates -d 'Show files that exist more than once'
complete -c gpudctl -n '__gpudctl_is storage' -l link -d 'Turn the copies into one file'
complete -c gpudctl -n '__gpudctl_is storage' -l dry-run -d 'Only show what would be removed'
complete -c gpudctl -n '__gpudctl_is storage' -s y -l yes -d 'Do not ask for confirmation'
complete -c gpudctl -n '__gpudctl_is storage' -l least -x -d 'Warn below this'
complete -c gpudctl -n '__gpudctl_is storage' -l fail -d 'End with status 1 below this'
complete -c gpudctl -n '__gpudctl_is key; and not __gpudctl_is_action add; and not __gpudctl_is_action list; and not __gpudctl_is_action revoke' -a 'add list revoke'
complete -c gpudctl -n '__gpudctl_is key' -l allow -x -a '(__gpudctl_ask models)' -d 'Model that the key may use'
complete -c gpudctl -n '__gpudctl_is key' -l rate -x -d 'Request limit'
complete -c gpudctl -n '__gpudctl_is key' -l priority -x -a 'low normal high critical' -d 'Priority of its requests'
complete -c gpudctl -n '__gpudctl_is key' -l may -x -a 'use manage' -d 'What the key may do'
complete -c gpudctl -n '__gpudctl_is key' -l file -r -F -d 'Key file'

complete -c gpudctl -n '__gpudctl_is estimate' -F
complete -c gpudctl -n '__gpudctl_is estimate' -l formula -d 'Calculate; do not start llama-server'
complete -c gpudctl -n '__gpudctl_is estimate' -l gpus -x -d 'Number of GPUs'
complete -c gpudctl -n '__gpudctl_is estimate' -l binary -r -F -d 'The llama-server to ask'

complete -c gpudctl -n '__gpudctl_is ps top chat bench' -l url -x -d 'Door to ask'
complete -c gpudctl -n '__gpudctl_is ps top chat bench' -l key-file -r -F -d 'File with the API key'
complete -c gpudctl -n '__gpudctl_is chat' -l system-prompt -x -d 'System prompt for the model'
complete -c gpudctl -n '__gpudctl_is chat bench' -l tokens -x -d 'Tokens of an answer'
complete -c gpudctl -n '__gpudctl_is bench' -l requests -x -d 'Number of requests to measure'
complete -c gpudctl -n '__gpudctl_is bench' -l parallel -x -d 'Number of concurrent requests'

complete -c gpudctl -n '__gpudctl_is doctor' -l config -r -F -d 'Configuration file'
complete -c gpudctl -n '__gpudctl_is version' -l daemon -d 'Also ask the running gpud'

complete -c gpudctl -n '__gpudctl_is import' -a 'llama-swap llama-cpp-server nixos docker-env ollama' -d 'Whose settings'
complete -c gpudctl -n '__gpudctl_is import' -F
complete -c gpudctl -n '__gpudctl_is import' -l output -r -F -d 'Write the configuration to this file'
complete -c gpudctl -n '__gpudctl_is import' -l force -d 'Replace the file if it exists'
complete -c gpudctl -n '__gpudctl_is import' -l check -d 'Only show what would become of each setting'
complete -c gpudctl -n '__gpudctl_is import' -l directory -r -F -d 'Base of relative paths'
complete -c gpudctl -n '__gpudctl_is import' -l environment -r -F -d 'File with variables'
complete -c gpudctl -n '__gpudctl_is import' -l map -x -d 'Path on this machine of a path in a container'
complete -c gpudctl -n '__gpudctl_is import' -l name -x -d 'Name of the model'
complete -c gpudctl -n '__gpudctl_is import' -l prefix -x -d 'Option whose value the file contains'
complete -c gpudctl -n '__gpudctl_is import' -l models -r -F -d 'Model store of Ollama'
complete -c gpudctl -n '__gpudctl_is import' -l engine -x -a 'ollama llama_server' -d 'Engine for the models'
