//! Middleware around every run: how long each took, and no work for tenants that do not pay.
//!
//! `cargo run -p tidewire --example middleware`

use std::time::Instant;

use serde::{Deserialize, Serialize};
use tidewire::{App, HandlerResult, JobContext, Middleware, Next, TenantId, done, fail};

/// Prints how long each run took, and what it came to.
async fn timing(cx: JobContext, next: Next) -> HandlerResult {
    let (begun, job) = (Instant::now(), cx.job().clone());
    let answer = next.run(cx).await;
    println!("{} of {} took {:?}: {answer:?}", job.kind, job.tenant, begun.elapsed());
    answer
}

/// Runs only the jobs of tenants that pay.
struct Paying {
    unpaid: Vec<TenantId>,
}

impl Middleware for Paying {
    async fn run(&self, cx: JobContext, next: Next) -> HandlerResult {
        if self.unpaid.contains(cx.tenant()) {
            return fail("the trial is over");
        }
        next.run(cx).await
    }
}

#[derive(Serialize, Deserialize, tidewire::Job)]
#[serde(rename_all = "camelCase")]
struct EoiReminder {
    document_id: String,
    recipient_email: String,
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let (pays, owes) = (TenantId::new("marina-bay")?, TenantId::new("marina-old")?);
    let mut config = tidewire::Config::default();
    config.auth.jwt.secret = Some(tidewire::random_secret()?);
    let app = App::builder("apps/port-nimara")
        .config(config)
        .store("memory:")
        .layer(timing) // the outermost: it sees what the guard answers, too
        .layer(Paying { unpaid: vec![owes.clone()] })
        .job(|_: EoiReminder| async { done() })
        .build()
        .await?;
    for tenant in [pays, owes] {
        let reminder = EoiReminder { document_id: "d-1".to_owned(), recipient_email: "kim@example.com".to_owned() };
        app.enqueue(&tenant, &reminder).await?;
    }
    tokio::signal::ctrl_c().await?;
    app.stop().await;
    Ok(())
}
