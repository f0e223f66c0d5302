//! What monitoring asks: `GET /metrics` in the Prometheus text format, and the same as JSON for `GET /v1/stats`.
//!
//! Each section collects its numbers when it is asked and keeps nothing, so being watched costs nothing between two questions. Names and
//! labels are part of the outside face: `docs/operations.md` lists them all, and a test compares the two.

mod exposition;
mod jobs;
mod process;
mod sockets;
mod store;

use std::sync::Arc;

use serde_json::{Value, json};
use tidewire_core::store::{Counts, Figures};
use tidewire_core::{Result, TenantId};
use tidewire_gateway::Metrics;

use self::exposition::Exposition;
use self::process::Process;
use crate::api::Api;

/// The media type of [`render`]'s text.
pub(crate) const MEDIA_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// Everything, in the Prometheus text format 0.0.4. Without the store's sections when the store does not answer.
pub(crate) async fn render(api: &Arc<Api>) -> String {
    let (process, gateway) = look(api).await;
    let mut out = Exposition::default();
    process::write(&process, &mut out);
    sockets::write(&gateway, &mut out);
    let store = api.publisher.store();
    let held = match store.figures().await {
        Ok(figures) => store.counts(None).await.map(|counts| (figures, counts)),
        Err(error) => Err(error),
    };
    store::write_up(held.is_ok(), store.durability(), &mut out);
    if let Ok((figures, counts)) = held {
        store::write(&figures, &mut out);
        jobs::write(&figures, &counts, &mut out);
    }
    out.into_text()
}

/// Everything, as JSON. Code `unavailable` when the store is closed.
pub(crate) async fn stats(api: &Arc<Api>) -> Result<Value> {
    let store = api.publisher.store();
    let (figures, counts): (Figures, Counts) = (store.figures().await?, store.counts(None).await?);
    let (process, gateway) = look(api).await;
    let mut stored = json!(figures);
    let runs = stored["queues"].take();
    if let Some(fields) = stored.as_object_mut() {
        fields.remove("queues");
        fields.insert("durability".to_owned(), json!(store.durability().as_str()));
    }
    Ok(json!({ "process": process, "sockets": gateway, "store": stored, "jobs": { "states": counts, "runs": runs } }))
}

/// What concerns one tenant, as JSON. Code `unavailable` when the store is closed.
pub(crate) async fn tenant_stats(api: &Arc<Api>, tenant: &TenantId) -> Result<Value> {
    let store = api.publisher.store();
    let (position, counts) = (store.head(tenant).await?, store.counts(Some(tenant)).await?);
    let mut sockets = json!(api.gateway.tenant_metrics(tenant));
    if let Some(fields) = sockets.as_object_mut() {
        fields.remove("tenant");
    }
    let stored = json!({ "position": position });
    Ok(json!({ "tenant": tenant, "sockets": sockets, "store": stored, "jobs": { "states": counts } }))
}

/// Looks at the process and at every connection, on a thread that may take its time.
async fn look(api: &Arc<Api>) -> (Process, Metrics) {
    let asked = api.clone();
    let look = tokio::task::spawn_blocking(move || {
        (Process::look(asked.started), asked.gateway.metrics(asked.metrics.max_tenants))
    });
    // It ends early only in a runtime that is going down, and then nobody reads the answer.
    look.await.unwrap_or_default()
}
