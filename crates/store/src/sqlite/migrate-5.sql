-- From version 4 to 5: what goes to rooms that span tenants has a log.

CREATE TABLE across (number INTEGER PRIMARY KEY, tenant INTEGER NOT NULL, position INTEGER NOT NULL);
