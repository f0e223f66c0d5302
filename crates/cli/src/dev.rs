//! `tidewire dev`

use std::fs::{self, OpenOptions};
use std::io::Write;
use std::net::SocketAddr;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, bail};
use clap::Args;
use tidewire::{App, Builder, TenantId, random_secret};

use crate::serve::{listen, load_config};

/// How long the printed tokens last.
const TOKEN_TTL: Duration = Duration::from_secs(12 * 3600);

/// The arguments of `tidewire dev`.
#[derive(Args)]
pub(crate) struct Dev {
    /// The folder with the app.toml. Default: Port Nimara, the demo that is built in.
    #[arg(long)]
    app: Option<PathBuf>,
    /// Where to listen; loopback only. Default 127.0.0.1:7400.
    #[arg(long)]
    listen: Option<SocketAddr>,
    /// The data directory.
    #[arg(long, default_value = ".tidewire")]
    data: PathBuf,
}

impl Dev {
    pub(crate) fn run(self) -> anyhow::Result<()> {
        let mut config = load_config(None)?;
        config.listen = self.listen.or(config.listen);
        if let Some(address) = config.listen.filter(|address| !address.ip().is_loopback()) {
            bail!("dev has demo credentials and only listens on loopback, not on {address}; use `tidewire serve`");
        }
        fs::create_dir_all(&self.data).with_context(|| format!("{}", self.data.display()))?;
        config.auth.admin_key = Some(kept_secret(&self.data.join("admin-key"))?);
        config.auth.jwt.secret = Some(kept_secret(&self.data.join("jwt-secret"))?);
        config.data = Some(self.data.clone());
        let dir = match &self.app {
            Some(dir) => dir.clone(),
            None => write_demo_catalog(&self.data)?,
        };
        crate::runtime()?.block_on(async {
            let listener = listen(&config).await?;
            let builder = App::builder(&dir).config(config).on_fatal(crate::on_fatal);
            let builder: Builder = if self.app.is_none() { port_nimara::handlers(builder) } else { builder };
            let app = builder.build().await?;
            let mut router = app.router();
            if self.app.is_none() {
                router = router.merge(port_nimara::routes(&app).await?);
            }
            banner(&app, &self.data, listener.local_addr()?, self.app.is_none())?;
            app.serve(listener, router).await;
            Ok(())
        })
    }
}

/// A secret that outlives a restart, so that open pages can come back with their tokens.
fn kept_secret(path: &Path) -> anyhow::Result<String> {
    if let Ok(secret) = fs::read_to_string(path) {
        return Ok(secret.trim().to_owned());
    }
    let secret = random_secret()?;
    let mut file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path)
        .with_context(|| format!("{}", path.display()))?;
    writeln!(file, "{secret}")?;
    Ok(secret)
}

/// Writes the built-in catalog where it can be looked at.
fn write_demo_catalog(data: &Path) -> anyhow::Result<PathBuf> {
    let dir = data.join("port-nimara");
    fs::create_dir_all(&dir)?;
    for (name, text) in port_nimara::CATALOG {
        fs::write(dir.join(name), text)?;
    }
    Ok(dir)
}

fn banner(app: &App, data: &Path, address: SocketAddr, is_demo: bool) -> anyhow::Result<()> {
    println!("tidewire dev: {} ({})", app.catalog().app.name, app.store().durability().as_str());
    println!();
    if is_demo {
        println!("  live page   http://{address}/demo");
    }
    println!("  API         http://{address}/v1");
    println!("  sockets     io(\"http://{address}\")");
    println!("  admin key   in {}", data.join("admin-key").display());
    let roles = ["sales".to_owned()];
    for port in is_demo.then_some(port_nimara::PORTS).into_iter().flatten() {
        let token = app.token(&TenantId::new(port.id)?, port.user_id, &roles, TOKEN_TTL)?;
        println!("  user token  {} of {}: {token}", port.user_name, port.name);
    }
    println!();
    Ok(())
}
