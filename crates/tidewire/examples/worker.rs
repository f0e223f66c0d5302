//! The worker of the README: a job of Port Nimara in a program of its own.
//!
//! `TIDEWIRE_ADMIN_KEY=… TIDEWIRE_AUTH__JWT__SECRET=… cargo run -p tidewire --example worker`

use serde::{Deserialize, Serialize};
use tidewire::{App, Config, Job, JobContext, NewEvent, done};

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct EoiReminder {
    document_id: String,
    recipient_email: String,
    interest_id: String,
}
impl Job for EoiReminder {
    const TYPE: &'static str = "eoi-reminder";
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let app = App::builder("apps/port-nimara")
        .config(Config::load(None, std::env::vars())?)
        .job(|job: EoiReminder, cx: JobContext| async move {
            println!("reminding {}", job.recipient_email); // the work; `?` on an error means: try again later
            cx.publish(NewEvent::new("document:reminderSent", serde_json::to_value(&job)?));
            done()
        })
        .build()
        .await?;
    let listener = tokio::net::TcpListener::bind("127.0.0.1:7400").await?;
    app.serve(listener, app.router()).await;
    Ok(())
}
