-- What an estimate was calculated from: a mark of the settings. One that was kept before this is calculated anew.
ALTER TABLE model ADD COLUMN estimate_of TEXT NOT NULL DEFAULT '';
