//! The process itself. The names without `tidewire_` are those that Prometheus' own clients use, so common dashboards find them.

use std::fs;
use std::time::Instant;

use serde::Serialize;

use super::exposition::{Exposition, Kind};

/// Clock ticks in a second, as Linux shows times to programs on every architecture in use.
const TICKS: f64 = 100.0;

/// What the system says of this process. Where it is not Linux, only version and uptime are known.
#[derive(Clone, Copy, Debug, Default, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Process {
    version: &'static str,
    uptime_seconds: f64,
    resident_bytes: Option<u64>,
    cpu_seconds: Option<f64>,
    open_fds: Option<u64>,
    max_fds: Option<u64>,
}

impl Process {
    /// Reads `/proc`, which takes longer the more files are open.
    pub(super) fn look(started: Instant) -> Self {
        let read = |file: &str| fs::read_to_string(format!("/proc/self/{file}")).ok();
        let fds = fs::read_dir("/proc/self/fd").ok();
        Self {
            version: env!("CARGO_PKG_VERSION"),
            uptime_seconds: started.elapsed().as_secs_f64(),
            resident_bytes: read("status").as_deref().and_then(resident),
            cpu_seconds: read("stat").as_deref().and_then(cpu),
            // The one that reads the folder is in it.
            open_fds: fds.map(|fds| (fds.count() as u64).saturating_sub(1)),
            max_fds: read("limits").as_deref().and_then(max_fds),
        }
    }
}

/// `VmRSS:     12345 kB` in `/proc/self/status`.
fn resident(status: &str) -> Option<u64> {
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    line.split_ascii_whitespace().next()?.parse::<u64>().ok().map(|kilobytes| kilobytes * 1024)
}

/// The fields 14 and 15 of `/proc/self/stat`, in user and in kernel mode. The second field is a name in parentheses, which may hold anything.
fn cpu(stat: &str) -> Option<f64> {
    let (_, rest) = stat.rsplit_once(") ")?;
    let mut times = rest.split(' ').skip(11).map_while(|field| field.parse::<u64>().ok());
    Some((times.next()? + times.next()?) as f64 / TICKS)
}

/// `Max open files            1024                 4096                 files` in `/proc/self/limits`; nothing when there is no limit.
fn max_fds(limits: &str) -> Option<u64> {
    let line = limits.lines().find_map(|line| line.strip_prefix("Max open files"))?;
    line.split_ascii_whitespace().next()?.parse().ok()
}

pub(super) fn write(process: &Process, out: &mut Exposition) {
    let mut build = out.family("tidewire_build_info", Kind::Gauge, "1, with the version of this build.");
    build.sample(&[("version", process.version)], 1);
    let uptime = "Seconds since this process opened its store.";
    out.single("tidewire_uptime_seconds", Kind::Gauge, uptime, process.uptime_seconds);
    if let Some(bytes) = process.resident_bytes {
        out.single("process_resident_memory_bytes", Kind::Gauge, "Resident memory.", bytes);
    }
    if let Some(seconds) = process.cpu_seconds {
        out.single("process_cpu_seconds_total", Kind::Counter, "CPU time, user and system.", seconds);
    }
    if let Some(open) = process.open_fds {
        out.single("process_open_fds", Kind::Gauge, "Open files and connections.", open);
    }
    if let Some(most) = process.max_fds {
        out.single("process_max_fds", Kind::Gauge, "The most files and connections that may be open.", most);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_files_of_linux_are_read() {
        assert_eq!(resident("Name:\tx\nVmPeak:\t 9 kB\nVmRSS:\t  1234 kB\n"), Some(1234 * 1024));
        let stat = "42 (a) b (c) S 1 42 42 0 -1 4194560 100 0 0 0 250 50 0 0 20 0 4 0 100 1 1";
        assert_eq!(cpu(stat), Some(3.0));
        assert_eq!(max_fds("Limit  Soft Limit\nMax open files            1024   4096   files\n"), Some(1024));
        assert_eq!(max_fds("Max open files            unlimited   unlimited   files\n"), None);
    }
}
