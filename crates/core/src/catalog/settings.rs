//! What is changed about a queue while it runs, over what its catalog says.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::limit::Rate;
use crate::store::{QueueLimits, TenantLimits};
use crate::time::optional_duration_text;
use crate::{Error, Json, Result, TenantId};

/// The most jobs at once, and the most waiting ones, that a setting may ask for: the same as in a catalog.
const MOST_AT_ONCE: u64 = 100_000;
const MOST_WAITING: u64 = 1_000_000_000;

/// The most tenants that a queue treats otherwise.
const MOST_TENANTS: usize = 10_000;

/// What was changed about a queue. What is absent is as the catalog says.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct QueueSettings {
    /// Jobs at once in one process.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub concurrency: Option<u32>,
    /// Jobs at once over all processes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub global: Option<u32>,
    /// Jobs at once of one tenant.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub per_tenant: Option<u32>,
    /// Jobs at once of one key of one tenant.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub per_key: Option<u32>,
    /// Starts per time over all processes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rate: Option<Rate>,
    /// Starts per time of one tenant.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rate_per_tenant: Option<Rate>,
    /// Starts per time of one key of one tenant.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rate_per_key: Option<Rate>,
    /// Waiting jobs of one tenant.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub backlog: Option<u64>,
    /// A waiting job gains one priority for each of these.
    #[serde(with = "optional_duration_text", skip_serializing_if = "Option::is_none")]
    pub aging: Option<Duration>,
    /// Whether no job starts. Those that run go on.
    #[serde(skip_serializing_if = "is_false")]
    pub paused: bool,
    /// The tenants that are treated otherwise.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub tenants: BTreeMap<TenantId, TenantSettings>,
}

/// What was changed about one tenant in a queue. What is absent is as the catalog says, or as for all tenants.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct TenantSettings {
    /// Its turns for each turn of a tenant of weight 1, from 1 to [`TenantLimits::MAX_WEIGHT`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub weight: Option<u32>,
    /// Its jobs at once.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub at_once: Option<u32>,
    /// Its starts per time.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rate: Option<Rate>,
    /// Its waiting jobs.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub backlog: Option<u64>,
    /// Whether none of its jobs starts. Those that run go on.
    #[serde(skip_serializing_if = "is_false")]
    pub paused: bool,
}

fn is_false(flag: &bool) -> bool {
    !*flag
}

impl QueueSettings {
    /// These settings after a merge patch (RFC 7386): what is null is as the catalog says again.
    ///
    /// Code `queue.invalid_settings` for unknown keys, wrong types and numbers out of bounds.
    pub fn patched(&self, patch: &Json) -> Result<Self> {
        let wrong = |detail: String| Error::invalid("queue.invalid_settings", detail);
        let patch = patch.to_value().map_err(|error| wrong(error.detail().to_owned()))?;
        if !patch.is_object() {
            return Err(wrong("expected an object of settings".to_owned()));
        }
        let mut value =
            serde_json::to_value(self).map_err(|error| Error::internal("settings cannot be written", error))?;
        merge(&mut value, patch);
        let mut patched: Self = serde_json::from_value(value).map_err(|error| wrong(error.to_string()))?;
        patched.tenants.retain(|_, own| *own != TenantSettings::default());
        patched.check()?;
        Ok(patched)
    }

    fn check(&self) -> Result<()> {
        let at_once = |number: Option<u32>| number.map(u64::from);
        bounded("concurrency", at_once(self.concurrency), MOST_AT_ONCE)?;
        bounded("global", at_once(self.global), MOST_AT_ONCE)?;
        bounded("perTenant", at_once(self.per_tenant), MOST_AT_ONCE)?;
        bounded("perKey", at_once(self.per_key), MOST_AT_ONCE)?;
        bounded("backlog", self.backlog, MOST_WAITING)?;
        if self.aging.is_some_and(|aging| aging.is_zero()) {
            return Err(Error::invalid("queue.invalid_settings", "aging: expected more than nothing"));
        }
        if self.tenants.len() > MOST_TENANTS {
            let detail = format!("tenants: expected at most {MOST_TENANTS}, got {}", self.tenants.len());
            return Err(Error::invalid("queue.invalid_settings", detail));
        }
        for (tenant, own) in &self.tenants {
            let name = |key: &str| format!("tenants.{tenant}.{key}");
            bounded(&name("weight"), at_once(own.weight), u64::from(TenantLimits::MAX_WEIGHT))?;
            bounded(&name("atOnce"), at_once(own.at_once), MOST_AT_ONCE)?;
            bounded(&name("backlog"), own.backlog, MOST_WAITING)?;
        }
        Ok(())
    }

    /// What is enforced when these settings lie over what the catalog declares.
    pub fn over(&self, declared: QueueLimits) -> QueueLimits {
        let mut tenants = declared.tenants;
        for (tenant, own) in &self.tenants {
            let limits = tenants.entry(tenant.clone()).or_default();
            limits.weight = own.weight.or(limits.weight);
            limits.at_once = own.at_once.or(limits.at_once);
            limits.rate = own.rate.or(limits.rate);
            limits.backlog = own.backlog.or(limits.backlog);
            limits.paused |= own.paused;
        }
        QueueLimits {
            global: self.global.or(declared.global),
            per_tenant: self.per_tenant.or(declared.per_tenant),
            per_key: self.per_key.or(declared.per_key),
            rate: self.rate.or(declared.rate),
            rate_per_tenant: self.rate_per_tenant.or(declared.rate_per_tenant),
            rate_per_key: self.rate_per_key.or(declared.rate_per_key),
            backlog: self.backlog.or(declared.backlog),
            aging: self.aging.or(declared.aging),
            paused: self.paused || declared.paused,
            tenants,
            ..declared
        }
    }
}

fn bounded(name: &str, number: Option<u64>, most: u64) -> Result<()> {
    match number {
        Some(number) if number == 0 || number > most => {
            let detail = format!("{name}: expected 1 to {most}, got {number}; null gives back what the catalog says");
            Err(Error::invalid("queue.invalid_settings", detail))
        }
        _ => Ok(()),
    }
}

/// RFC 7386, section 2.
fn merge(target: &mut Value, patch: Value) {
    let Value::Object(patch) = patch else {
        *target = patch;
        return;
    };
    if !target.is_object() {
        *target = Value::Object(Map::new());
    }
    let Some(fields) = target.as_object_mut() else { return };
    for (name, value) in patch {
        if value.is_null() {
            fields.remove(&name);
        } else {
            merge(fields.entry(name).or_insert(Value::Null), value);
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn patched(settings: &QueueSettings, patch: Value) -> Result<QueueSettings> {
        settings.patched(&Json::from(patch))
    }

    #[test]
    fn a_patch_changes_what_it_names_and_null_gives_it_back() {
        let first = json!({ "global": 5, "rate": "10/s", "tenants": { "acme": { "weight": 3, "paused": true } } });
        let settings = patched(&QueueSettings::default(), first).expect("settings");
        let second = json!({ "rate": null, "aging": "5m", "tenants": { "acme": { "paused": null } } });
        let settings = patched(&settings, second).expect("settings");
        let shown = serde_json::to_value(&settings).expect("json");
        assert_eq!(shown, json!({ "global": 5, "aging": "5m", "tenants": { "acme": { "weight": 3 } } }));
        let none = json!({ "global": null, "aging": null, "tenants": null });
        assert_eq!(patched(&settings, none).expect("settings"), QueueSettings::default());
    }

    #[test]
    fn a_tenant_without_settings_is_forgotten() {
        let paused = json!({ "tenants": { "acme": { "paused": true } } });
        let settings = patched(&QueueSettings::default(), paused).expect("settings");
        let resumed = json!({ "tenants": { "acme": { "paused": null } } });
        assert_eq!(patched(&settings, resumed).expect("settings"), QueueSettings::default());
    }

    #[test]
    fn what_makes_no_sense_is_refused() {
        for (patch, said) in [
            (json!({ "global": 0 }), "global: expected 1 to 100000, got 0"),
            (json!({ "concurrency": 100_001 }), "concurrency"),
            (json!({ "glboal": 5 }), "unknown field `glboal`"),
            (json!({ "rate": "0/s" }), "expected a rate"),
            (json!({ "aging": "0s" }), "aging"),
            (json!({ "tenants": { "acme": { "weight": 0 } } }), "tenants.acme.weight: expected 1 to 1000"),
            (json!({ "tenants": { "acme": { "wait": 1 } } }), "unknown field `wait`"),
            (json!({ "tenants": { "no spaces": { "weight": 1 } } }), "tenant: expected"),
            (json!([]), "expected an object"),
        ] {
            let error = patched(&QueueSettings::default(), patch.clone()).expect_err("refused");
            assert_eq!(error.code(), "queue.invalid_settings");
            assert!(error.detail().contains(said), "{patch}: {error}");
        }
    }

    #[test]
    fn settings_lie_over_the_catalog() {
        let acme = TenantId::new("acme").expect("tenant");
        let declared = QueueLimits {
            global: Some(10),
            per_tenant: Some(2),
            tenants: BTreeMap::from([(acme.clone(), TenantLimits { weight: Some(3), ..TenantLimits::default() })]),
            ..QueueLimits::default()
        };
        let patch = json!({ "global": 20, "paused": true, "tenants": { "acme": { "atOnce": 7 } } });
        let limits = patched(&QueueSettings::default(), patch).expect("settings").over(declared.clone());
        assert_eq!((limits.global, limits.per_tenant, limits.paused), (Some(20), Some(2), true));
        assert_eq!((limits.tenants[&acme].weight, limits.tenants[&acme].at_once), (Some(3), Some(7)));
        assert_eq!(QueueSettings::default().over(declared.clone()), declared);
    }
}
