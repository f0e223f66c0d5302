-- From version 2 to 3: how often a schedule of the catalog has run.

ALTER TABLE slots ADD COLUMN runs INTEGER NOT NULL DEFAULT 0;
