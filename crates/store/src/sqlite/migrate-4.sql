-- From version 3 to 4: flows can be listed, and a job that runs again is waited for again by those that have not begun.

CREATE INDEX flows_tenant ON flows (tenant);
DROP INDEX edges_parent;
CREATE INDEX edges_parent ON edges (parent);
