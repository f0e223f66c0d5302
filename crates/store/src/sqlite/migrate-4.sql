-- From version 3 to 4: flows can be listed.

CREATE INDEX flows_tenant ON flows (tenant);
