-- What models there are, and what became of each. Times are microseconds since the epoch, sizes are bytes.
--
-- What gpud keeps is in table "model"; "models" shows it as the registry did that people's queries were written for, with
-- the same 17 columns. There are some thousand rows at most: they are read through faster than more indexes are kept.

-- Texts whose bytes are no UTF-8 (names of files) are kept as blobs of just these bytes. Empty: not known, or nothing said.
CREATE TABLE model (
    id INTEGER PRIMARY KEY AUTOINCREMENT, -- never used again
    name TEXT NOT NULL UNIQUE,
    path TEXT NOT NULL UNIQUE,            -- of the best place; "engine:name" where there is no file
    format TEXT NOT NULL,
    purpose TEXT NOT NULL,
    size_bytes INTEGER NOT NULL,
    architecture TEXT NOT NULL,
    quantization TEXT NOT NULL,
    parameters TEXT NOT NULL,
    trained_context INTEGER,
    parts INTEGER NOT NULL,
    mmproj TEXT NOT NULL,
    draft_file TEXT NOT NULL,
    template INTEGER NOT NULL,
    tools INTEGER NOT NULL,
    ollama_name TEXT NOT NULL,
    problem TEXT NOT NULL,
    digest TEXT NOT NULL,
    stamp TEXT NOT NULL,
    places TEXT NOT NULL,                 -- JSON: [{"path", "source", "name"}, ...], the best first
    compatible TEXT NOT NULL,             -- JSON: engines
    present INTEGER NOT NULL,
    configured INTEGER NOT NULL,
    estimate_bytes INTEGER,               -- as it is configured
    aliases TEXT NOT NULL,                -- JSON; from here on what somebody said about it
    priority TEXT NOT NULL,               -- empty: as configured
    tags TEXT NOT NULL,                   -- JSON
    notes TEXT NOT NULL,
    usage_count INTEGER NOT NULL,         -- from here on what became of it
    first_seen_us INTEGER NOT NULL,
    last_seen_us INTEGER,                 -- NULL: at the last look, whose time is in "scan"
    last_used_us INTEGER,
    load_s REAL
);

-- One row. A look that finds nothing new writes nothing but this.
CREATE TABLE scan (
    one INTEGER PRIMARY KEY CHECK (one = 1),
    at_us INTEGER NOT NULL
);
INSERT INTO scan VALUES (1, 0);

-- Where the file is the registry of the ML offload manager, its models come along: ids, names, use, and what was said
-- about them. They are not present until they are found. Everywhere else this makes an empty table that goes at once.
CREATE TABLE IF NOT EXISTS models (
    id INTEGER PRIMARY KEY, name, path, format, size_gb, last_scanned, last_used, usage_count, priority, tags, notes
);
INSERT INTO model
SELECT
    id, name, path,
    CASE lower(format) WHEN 'gguf' THEN 'gguf' WHEN 'safetensors' THEN 'safetensors' ELSE 'other' END,
    'completion', CAST(coalesce(size_gb, 0) * 1073741824 AS INTEGER),
    '', '', '', NULL, 1, '', '', 0, 0, '', '', '', '',
    '[]', '[]', 0, 0, NULL, '[]',
    CASE WHEN priority IN ('low', 'high', 'critical') THEN priority ELSE '' END,
    CASE WHEN NOT json_valid(tags) THEN '[]' WHEN json_type(tags) = 'array' THEN json(tags) ELSE '[]' END,
    coalesce(notes, ''), coalesce(usage_count, 0),
    coalesce(CAST(strftime('%s', last_scanned, 'utc') AS INTEGER) * 1000000, 0),
    coalesce(CAST(strftime('%s', last_scanned, 'utc') AS INTEGER) * 1000000, 0),
    CAST(strftime('%s', last_used, 'utc') AS INTEGER) * 1000000,
    NULL
FROM models;
DROP TABLE models;

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
    -- Until it was calculated, what the old registry would have said.
    round(CASE
        WHEN estimate_bytes IS NOT NULL THEN estimate_bytes / 1073741824.0
        WHEN size_bytes = 0 THEN 0
        WHEN format = 'safetensors' THEN size_bytes * 1.2 / 1073741824.0
        ELSE size_bytes / 1073741824.0 + 0.5
    END, 2),
    nullif(architecture, ''), nullif(quantization, ''), nullif(parameters, ''), coalesce(trained_context, 0),
    compatible,
    strftime('%Y-%m-%dT%H:%M:%f+00:00', coalesce(last_seen_us, scan.at_us) / 1000000.0, 'unixepoch'),
    strftime('%Y-%m-%dT%H:%M:%f+00:00', last_used_us / 1000000.0, 'unixepoch'),
    usage_count,
    CASE WHEN priority IN ('', 'normal') THEN 'medium' ELSE priority END,
    tags, nullif(notes, '')
FROM model CROSS JOIN scan;
