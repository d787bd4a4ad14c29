-- What models were measured to hold, what engines held beyond their own count, and what they said they would allocate.
-- Sizes are bytes.

-- The latest few of each key, which names a model's settings and the kind of its devices.
CREATE TABLE measured (
    id INTEGER PRIMARY KEY,
    key TEXT NOT NULL,
    gpu_bytes INTEGER NOT NULL,
    host_bytes INTEGER NOT NULL,
    load_s REAL NOT NULL,
    at_us INTEGER NOT NULL
);
CREATE INDEX measured_by_key ON measured (key, id);

-- place: the device, its driver and the engine's build. used: a higher number was used later.
CREATE TABLE residual (
    place TEXT PRIMARY KEY NOT NULL,
    count INTEGER NOT NULL,
    mean_bytes REAL NOT NULL,
    spread_bytes REAL NOT NULL,
    largest_bytes INTEGER NOT NULL,
    used INTEGER NOT NULL
) WITHOUT ROWID;
CREATE INDEX residual_by_use ON residual (used);

-- key: everything that an engine's own record depends on. estimate: that record, as JSON.
CREATE TABLE probe (
    key TEXT PRIMARY KEY NOT NULL,
    estimate TEXT NOT NULL,
    used INTEGER NOT NULL
);
CREATE INDEX probe_by_use ON probe (used);
