//! `tidewire dev`

use std::fs::{self, OpenOptions};
use std::io::{ErrorKind, Write};
use std::net::SocketAddr;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, bail};
use clap::Args;
use tidewire::{App, Builder, TenantId, random_secret};

use crate::serve::{listen, load_config};

/// A kept secret with fewer characters is no secret. Those that are made here have 43.
const SHORTEST_SECRET: usize = 32;

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
            let told = app.shutdown_signal();
            banner(&app, &self.data, listener.local_addr()?, self.app.is_none())?;
            app.serve_until(listener, router, told).await;
            Ok(())
        })
    }
}

/// A secret that outlives a restart, so that open pages can come back with their tokens.
fn kept_secret(path: &Path) -> anyhow::Result<String> {
    match fs::read_to_string(path) {
        Ok(kept) if kept.trim().len() >= SHORTEST_SECRET => return Ok(kept.trim().to_owned()),
        // Cut off by a crash, so there is no secret to keep.
        Ok(_) => {}
        Err(error) if error.kind() == ErrorKind::NotFound => {}
        Err(error) => return Err(error).with_context(|| format!("{}", path.display())),
    }
    let secret = random_secret()?;
    write_secret(path, &secret).with_context(|| format!("{}", path.display()))?;
    Ok(secret)
}

/// Writes beside `path` and renames, so that the file is whole at any moment. Only its owner may read it.
fn write_secret(path: &Path, secret: &str) -> std::io::Result<()> {
    let new = path.with_extension(format!("{}.new", std::process::id()));
    match fs::remove_file(&new) {
        Err(error) if error.kind() != ErrorKind::NotFound => return Err(error),
        Ok(()) | Err(_) => {}
    }
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&new)?;
    writeln!(file, "{secret}")?;
    file.sync_all()?;
    fs::rename(&new, path)
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

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn a_secret_is_kept_and_a_broken_one_is_not() {
        let dir = std::env::temp_dir().join(format!("tidewire-dev-{}", std::process::id()));
        fs::create_dir_all(&dir).expect("a directory");
        let path = dir.join("jwt-secret");
        let first = kept_secret(&path).expect("a secret");
        assert_eq!(kept_secret(&path).expect("the secret"), first);
        assert_eq!(fs::metadata(&path).expect("the file").permissions().mode() & 0o777, 0o600);
        for broken in ["", "\n", &first[..20]] {
            fs::write(&path, broken).expect("written");
            let second = kept_secret(&path).expect("a secret");
            assert!(second.len() >= SHORTEST_SECRET && second != first);
            assert_eq!(kept_secret(&path).expect("the secret"), second);
        }
        assert_eq!(fs::read_dir(&dir).expect("the directory").count(), 1, "nothing is left beside it");
        fs::remove_dir_all(&dir).expect("removed");
    }
}
