# shellcheck shell=sh
# Where models are kept, for programs that ask the environment. For sh and all like it; harmless when read twice.
# What is set already stays as it is.

: "${ML_MODELS_BASE:=/var/lib/ml-models}"
: "${LLAMACPP_MODELS_PATH:=$ML_MODELS_BASE/llamacpp}"
: "${OLLAMA_MODELS_PATH:=$ML_MODELS_BASE/ollama/models}"
export ML_MODELS_BASE LLAMACPP_MODELS_PATH OLLAMA_MODELS_PATH

# Programs write where these say: whoever may not write there keeps their own places.
if [ ! -d "$ML_MODELS_BASE/huggingface" ] || [ -w "$ML_MODELS_BASE/huggingface" ]; then
    : "${HF_HOME:=$ML_MODELS_BASE/huggingface}"
    : "${HF_HUB_CACHE:=$HF_HOME/hub}"
    : "${HF_DATASETS_CACHE:=$HF_HOME/datasets}"
    export HF_HOME HF_HUB_CACHE HF_DATASETS_CACHE
fi
if [ ! -d "$OLLAMA_MODELS_PATH" ] || [ -w "$OLLAMA_MODELS_PATH" ]; then
    : "${OLLAMA_MODELS:=$OLLAMA_MODELS_PATH}"
    export OLLAMA_MODELS
fi
