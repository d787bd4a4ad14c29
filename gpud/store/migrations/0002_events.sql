-- What happened and why, in the words that the journal has. at_us: the time of day, microseconds since the epoch.
CREATE TABLE event (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    at_us INTEGER NOT NULL,
    kind TEXT NOT NULL,
    level TEXT NOT NULL,
    model TEXT NOT NULL,
    message TEXT NOT NULL,
    fields TEXT NOT NULL, -- a JSON object
    detail TEXT NOT NULL  -- a JSON array of lines
);
CREATE INDEX event_by_model ON event (model, id);
