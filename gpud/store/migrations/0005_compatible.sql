-- Which engines take a model, for whoever reads the old table: by its format, as the old registry said it. What is broken
-- or an adapter is taken by none.
DROP VIEW models;
CREATE VIEW models (
    id, name, path, format, size_gb, vram_estimate_gb, architecture, quantization, parameter_count, context_length,
    compatible_backends, last_scanned, last_used, usage_count, priority, tags, notes
) AS
SELECT
    id, name, path,
    CASE
        WHEN format = 'gguf' THEN 'GGUF' WHEN format = 'safetensors' THEN 'SafeTensors'
        WHEN ollama_name <> '' THEN 'Ollama' ELSE 'Other'
    END,
    round(size_bytes / 1073741824.0, 2),
    round(CASE
        WHEN estimate_bytes IS NOT NULL THEN estimate_bytes / 1073741824.0
        WHEN size_bytes = 0 THEN 0
        WHEN format = 'safetensors' THEN size_bytes * 1.2 / 1073741824.0
        ELSE size_bytes / 1073741824.0 + 0.5
    END, 2),
    nullif(architecture, ''), nullif(quantization, ''), nullif(parameters, ''), coalesce(trained_context, 0),
    CASE
        WHEN compatible <> '[]' THEN compatible
        WHEN problem <> '' OR purpose = 'adapter' THEN '[]'
        WHEN format = 'gguf' THEN '["llamacpp","ollama"]'
        WHEN format = 'safetensors' THEN '["vllm","tgi"]'
        WHEN ollama_name <> '' THEN '["ollama"]'
        ELSE '[]'
    END,
    strftime('%Y-%m-%dT%H:%M:%f+00:00', coalesce(last_seen_us, scan.at_us) / 1000000.0, 'unixepoch'),
    strftime('%Y-%m-%dT%H:%M:%f+00:00', last_used_us / 1000000.0, 'unixepoch'),
    usage_count,
    CASE WHEN priority IN ('', 'normal') THEN 'medium' ELSE priority END,
    tags, nullif(notes, '')
FROM model CROSS JOIN scan;
