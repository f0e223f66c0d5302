//! The worker of the README: a job of Port Nimara in a program of its own.
//!
//! `TIDEWIRE_ADMIN_KEY=… TIDEWIRE_AUTH__JWT__SECRET=… cargo run -p tidewire --example worker`

use serde::{Deserialize, Serialize};
use tidewire::{App, Config, HandlerResult, JobContext, NewEvent, State, done};

#[derive(Serialize, Deserialize, tidewire::Job)] // the job type `eoi-reminder`
#[job(attempts = 5, backoff = "exponential(1s, factor 2, cap 5m)", timeout = "30s")]
#[serde(rename_all = "camelCase")]
struct EoiReminder {
    document_id: String,
    recipient_email: String,
    interest_id: String,
}

struct Mailer {
    from: &'static str,
}

async fn remind(job: EoiReminder, cx: JobContext, mailer: State<Mailer>) -> HandlerResult {
    println!("{} reminds {}", mailer.from, job.recipient_email); // the work; `?` on an error means: try again later
    cx.publish(NewEvent::new("document:reminderSent", serde_json::to_value(&job)?));
    done()
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let app = App::builder("apps/port-nimara")
        .config(Config::load(None, std::env::vars())?)
        .state(Mailer { from: "sales@port-nimara.example" })
        .job(remind)
        .build()
        .await?;
    let listener = tokio::net::TcpListener::bind("127.0.0.1:7400").await?;
    app.serve(listener, app.router()).await;
    Ok(())
}
