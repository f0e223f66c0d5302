//! Names as small numbers: each tenant, queue and type is written once and referred to by its number.

use std::collections::HashMap;
use std::sync::Arc;

use tidewire_core::{Result, TenantId};

use crate::rows::{NameId, NameKind, Rows};

/// The writer's view of the interned names, filled as they are used.
#[derive(Default)]
pub(crate) struct Names {
    tenants: HashMap<TenantId, NameId>,
    others: HashMap<Arc<str>, NameId>,
}

impl Names {
    /// The number of a tenant, written when it is new.
    pub(crate) fn tenant<R: Rows>(&mut self, rows: &mut R, tenant: &TenantId) -> Result<NameId> {
        if let Some(id) = self.tenants.get(tenant) {
            return Ok(*id);
        }
        let id = match rows.find_name(NameKind::Tenant, tenant.as_str())? {
            Some(id) => id,
            None => rows.add_name(NameKind::Tenant, tenant.as_str())?,
        };
        self.tenants.insert(tenant.clone(), id);
        Ok(id)
    }

    /// The number of a queue or type, written when it is new.
    pub(crate) fn other<R: Rows>(&mut self, rows: &mut R, name: &Arc<str>) -> Result<NameId> {
        if let Some(id) = self.others.get(name) {
            return Ok(*id);
        }
        let id = match rows.find_name(NameKind::Other, name)? {
            Some(id) => id,
            None => rows.add_name(NameKind::Other, name)?,
        };
        self.others.insert(name.clone(), id);
        Ok(id)
    }

    /// Forgets everything, after a transaction that may have written names was rolled back.
    pub(crate) fn clear(&mut self) {
        *self = Self::default();
    }
}
