//! What a measurement is made of and how it is printed: latencies, CPU time, memory, the machine, one line per result.

use anyhow::{Context, Result, bail};
use std::{fmt, fs, time::Duration};

/// Each power of two is cut into this many buckets, so a reported latency is at most 1/64 (1.6 %) above the real one.
const SUB_BUCKETS: u64 = 64;
const SUB_BITS: u32 = SUB_BUCKETS.trailing_zeros();
/// Latencies from this power of two nanoseconds up (about 69 s) share the last bucket; `max` stays exact.
const TOP_BITS: u32 = 36;
const BUCKETS: usize = bucket_of((1 << TOP_BITS) - 1) + 1;

/// A log-linear histogram of durations with nanosecond input and a relative error of at most 1.6 %.
///
/// It takes 16 KB however many values it holds. Recording costs one increment.
#[derive(Clone)]
pub(crate) struct Histogram {
    counts: Vec<u64>,
    total: u64,
    max_ns: u64,
}

/// Values under two times [`SUB_BUCKETS`] have a bucket each; above that the top [`SUB_BITS`] + 1 bits choose it.
const fn bucket_of(ns: u64) -> usize {
    if ns < SUB_BUCKETS {
        return ns as usize;
    }
    let exponent = 63 - ns.leading_zeros() - SUB_BITS;
    (exponent as u64 * SUB_BUCKETS + (ns >> exponent)) as usize
}

/// The largest value that lands in `bucket`.
const fn upper_edge(bucket: usize) -> u64 {
    let bucket = bucket as u64;
    if bucket < SUB_BUCKETS {
        return bucket;
    }
    let exponent = bucket / SUB_BUCKETS - 1;
    let mantissa = bucket % SUB_BUCKETS + SUB_BUCKETS;
    ((mantissa + 1) << exponent) - 1
}

impl Histogram {
    /// An empty histogram.
    pub(crate) fn new() -> Self {
        Self { counts: vec![0; BUCKETS], total: 0, max_ns: 0 }
    }

    /// Counts one duration.
    pub(crate) fn record(&mut self, value: Duration) {
        self.record_ns(u64::try_from(value.as_nanos()).unwrap_or(u64::MAX));
    }

    /// Counts one duration given in nanoseconds.
    pub(crate) fn record_ns(&mut self, ns: u64) {
        self.counts[bucket_of(ns).min(BUCKETS - 1)] += 1;
        self.total += 1;
        self.max_ns = self.max_ns.max(ns);
    }

    /// Adds everything that `other` has counted.
    pub(crate) fn merge(&mut self, other: &Self) {
        for (mine, theirs) in self.counts.iter_mut().zip(&other.counts) {
            *mine += theirs;
        }
        self.total += other.total;
        self.max_ns = self.max_ns.max(other.max_ns);
    }

    /// How many durations were counted.
    pub(crate) fn count(&self) -> u64 {
        self.total
    }

    /// The duration that the share `q` (0 to 1) of all values does not exceed; zero when nothing was counted.
    pub(crate) fn quantile(&self, q: f64) -> Duration {
        let rank = ((self.total as f64 * q).ceil() as u64).max(1);
        let mut seen = 0;
        for (bucket, count) in self.counts.iter().enumerate() {
            seen += count;
            if seen >= rank {
                let edge = if bucket == BUCKETS - 1 { self.max_ns } else { upper_edge(bucket) };
                return Duration::from_nanos(edge.min(self.max_ns));
            }
        }
        Duration::ZERO
    }

    /// The median.
    pub(crate) fn p50(&self) -> Duration {
        self.quantile(0.50)
    }

    /// The 99th percentile.
    pub(crate) fn p99(&self) -> Duration {
        self.quantile(0.99)
    }
}

/// A stop watch for the CPU time (user and system, all threads) of one process.
///
/// The kernel reports it in ticks of 10 ms, so measure over seconds.
pub(crate) struct Cpu {
    pid: u32,
    start: Duration,
}

impl Cpu {
    /// Starts counting for the process `pid`.
    ///
    /// # Errors
    /// If there is no such process.
    pub(crate) fn of(pid: u32) -> Result<Self> {
        Ok(Self { pid, start: cpu_time(pid)? })
    }

    /// Starts counting for this process.
    ///
    /// # Errors
    /// If `/proc` is not mounted.
    pub(crate) fn own() -> Result<Self> {
        Self::of(std::process::id())
    }

    /// CPU time used since this watch was started.
    ///
    /// # Errors
    /// If the process has ended.
    pub(crate) fn spent(&self) -> Result<Duration> {
        Ok(cpu_time(self.pid)?.saturating_sub(self.start))
    }
}

/// User and system time of a process since it began, from `/proc/PID/stat` (proc(5), fields 14 and 15).
fn cpu_time(pid: u32) -> Result<Duration> {
    // USER_HZ is part of the kernel's ABI: 100 on every architecture that Tidewire is built for.
    const TICK: Duration = Duration::from_millis(10);
    let path = format!("/proc/{pid}/stat");
    let stat = fs::read_to_string(&path).with_context(|| format!("reading {path}"))?;
    // Field 2 is the program's name in parentheses and may hold spaces, so count from its end.
    let (_, fields) = stat.rsplit_once(')').with_context(|| format!("{path} has no program name"))?;
    let mut fields = fields.split_ascii_whitespace().skip(11);
    let mut ticks = || fields.next().and_then(|field| field.parse::<u32>().ok());
    let (Some(user), Some(system)) = (ticks(), ticks()) else { bail!("{path} has no CPU times") };
    Ok(TICK * (user + system))
}

/// Resident memory of a process in bytes.
///
/// # Errors
/// If there is no such process.
pub(crate) fn rss(pid: u32) -> Result<u64> {
    let path = format!("/proc/{pid}/status");
    let status = fs::read_to_string(&path).with_context(|| format!("reading {path}"))?;
    let kilobytes = status
        .lines()
        .find_map(|line| line.strip_prefix("VmRSS:"))
        .and_then(|rest| rest.split_ascii_whitespace().next())
        .and_then(|number| number.parse::<u64>().ok())
        .with_context(|| format!("{path} has no VmRSS: the process has ended"))?;
    Ok(kilobytes * 1024)
}

/// One line about the machine, to stand above every table of numbers: CPU model, cores, kernel.
pub(crate) fn machine() -> String {
    let cpuinfo = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = cpuinfo
        .lines()
        .find(|line| line.starts_with("model name"))
        .and_then(|line| line.split_once(':'))
        .map_or("unknown CPU", |(_, model)| model.trim());
    // Not `available_parallelism`: that counts the cores this process is pinned to.
    let cores = cpuinfo.lines().filter(|line| line.starts_with("processor")).count();
    let kernel = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    format!("{model}, {cores} cores, Linux {}", kernel.trim())
}

/// One result. `Display` prints it aligned under [`Row::HEADING`].
pub(crate) struct Row<'a> {
    /// What was done, at most 46 characters for the columns to stay aligned.
    pub(crate) name: &'a str,
    /// What an acknowledged operation survives: `fsync`, `none`, or `-` where nothing is stored.
    pub(crate) durability: &'a str,
    /// Operations finished.
    pub(crate) ops: u64,
    /// The time they took together.
    pub(crate) elapsed: Duration,
    /// How long single operations took, where that was measured.
    pub(crate) latency: Option<&'a Histogram>,
    /// CPU time of the measured process or processes, where that was measured.
    pub(crate) cpu: Option<Duration>,
}

impl Row<'_> {
    /// The column titles.
    pub(crate) const HEADING: &'static str =
        "name                                           durability        ops/s        p50        p99   CPU µs/op";
}

impl fmt::Display for Row<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let rate = thousands(per_second(self.ops, self.elapsed));
        let quantile = |read: fn(&Histogram) -> Duration| {
            self.latency.filter(|latency| latency.count() > 0).map_or_else(|| "-".to_owned(), |l| short(read(l)))
        };
        let (p50, p99) = (quantile(Histogram::p50), quantile(Histogram::p99));
        let cpu = match self.cpu {
            Some(cpu) if self.ops > 0 => format!("{:.2}", cpu.as_secs_f64() * 1e6 / self.ops as f64),
            _ => "-".to_owned(),
        };
        write!(f, "{:<46} {:<10} {rate:>12} {p50:>10} {p99:>10} {cpu:>11}", self.name, self.durability)
    }
}

/// Operations per second; zero when no time has passed.
pub(crate) fn per_second(ops: u64, elapsed: Duration) -> f64 {
    if elapsed.is_zero() { 0.0 } else { ops as f64 / elapsed.as_secs_f64() }
}

/// The lowest, middle and highest of several runs.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Spread {
    /// The lowest.
    pub(crate) min: f64,
    /// The middle one; the mean of the two middle ones when the number of runs is even.
    pub(crate) median: f64,
    /// The highest.
    pub(crate) max: f64,
}

impl Spread {
    /// Of `values` in any order.
    ///
    /// # Panics
    /// If `values` is empty.
    pub(crate) fn of(mut values: Vec<f64>) -> Self {
        assert!(!values.is_empty(), "a spread needs at least one run");
        values.sort_by(f64::total_cmp);
        let middle = values.len() / 2;
        let median =
            if values.len() % 2 == 1 { values[middle] } else { f64::midpoint(values[middle - 1], values[middle]) };
        Self { min: values[0], median, max: values[values.len() - 1] }
    }
}

/// How often to measure, and what.
pub(crate) struct Runs {
    /// Runs of each measurement, at least 1.
    pub(crate) count: usize,
    /// Only measurements whose name contains this.
    pub(crate) only: Option<String>,
}

impl Runs {
    /// Runs `measure` and prints the lowest, middle and highest of what it returns.
    ///
    /// # Errors
    /// The first error of `measure`, after which no further run is started.
    pub(crate) async fn repeat(
        &self,
        name: &str,
        unit: &str,
        mut measure: impl AsyncFnMut(usize) -> Result<f64>,
    ) -> Result<()> {
        self.repeat_each(name, [unit], async |run| Ok([measure(run).await?])).await
    }

    /// The same for a measurement of several figures, each with its unit.
    ///
    /// # Errors
    /// The first error of `measure`, after which no further run is started.
    pub(crate) async fn repeat_each<const N: usize>(
        &self,
        name: &str,
        units: [&str; N],
        mut measure: impl AsyncFnMut(usize) -> Result<[f64; N]>,
    ) -> Result<()> {
        if !self.wants(name) {
            return Ok(());
        }
        let mut values = [const { Vec::new() }; N];
        for run in 0..self.count {
            let measured = measure(run).await.with_context(|| format!("{name}, run {} of {}", run + 1, self.count))?;
            values.iter_mut().zip(measured).for_each(|(values, value)| values.push(value));
        }
        for (values, unit) in values.into_iter().zip(units) {
            let spread = Spread::of(values);
            let [min, median, max] = [spread.min, spread.median, spread.max].map(thousands);
            println!("{name}: min {min}  median {median}  max {max} {unit} ({} runs)", self.count);
        }
        Ok(())
    }

    /// Whether a measurement of this name was asked for.
    pub(crate) fn wants(&self, name: &str) -> bool {
        self.only.as_ref().is_none_or(|only| name.contains(only.as_str()))
    }
}

/// A number with thousands separators; decimals only where they still say something.
pub(crate) fn thousands(value: f64) -> String {
    if value < 100.0 {
        return format!("{value:.2}");
    }
    let digits = format!("{value:.0}");
    let mut out = String::with_capacity(digits.len() + digits.len() / 3);
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    out
}

/// A duration in the unit that keeps three or four digits of it.
fn short(duration: Duration) -> String {
    let micros = duration.as_secs_f64() * 1e6;
    match micros {
        m if m < 1_000.0 => format!("{m:.1} µs"),
        m if m < 1_000_000.0 => format!("{:.2} ms", m / 1e3),
        m => format!("{:.2} s", m / 1e6),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_value_is_reported_within_one_sixty_fourth() {
        for ns in (0..TOP_BITS).flat_map(|bits| [1_u64 << bits, (1 << bits) + 1, (1 << bits) * 3 / 2]) {
            let edge = upper_edge(bucket_of(ns));
            assert!(edge >= ns && edge - ns <= ns / SUB_BUCKETS, "{ns} is reported as {edge}");
        }
    }

    #[test]
    fn buckets_follow_each_other_without_a_hole() {
        for bucket in 0..BUCKETS {
            assert_eq!(bucket_of(upper_edge(bucket)), bucket);
            assert_eq!(bucket_of(upper_edge(bucket) + 1), bucket + 1);
        }
    }

    #[test]
    fn merged_histograms_count_as_one() {
        let (mut low, mut high) = (Histogram::new(), Histogram::new());
        (1..=99).for_each(|ms| low.record(Duration::from_millis(ms)));
        high.record(Duration::from_secs(100));
        low.merge(&high);
        assert_eq!(low.count(), 100);
        assert_eq!(low.p50().as_millis(), 50);
        assert_eq!(low.p99().as_millis(), 99);
        assert_eq!(low.quantile(1.0), Duration::from_secs(100));
        assert_eq!(Histogram::new().p99(), Duration::ZERO);
    }

    #[test]
    fn an_own_watch_sees_the_cpu_it_burns() {
        let cpu = Cpu::own().unwrap();
        let mut sum = 0_u64;
        while cpu.spent().unwrap() < Duration::from_millis(30) {
            sum = std::hint::black_box(sum + 1);
        }
        assert!(rss(std::process::id()).unwrap() > 100_000);
        assert!(rss(u32::MAX).is_err());
    }

    #[test]
    fn rows_align_under_their_heading() {
        let mut latency = Histogram::new();
        latency.record(Duration::from_micros(1500));
        let row = Row {
            name: "publish, 64 connections",
            durability: "fsync",
            ops: 1_234_567,
            elapsed: Duration::from_secs(1),
            latency: Some(&latency),
            cpu: Some(Duration::from_secs(1)),
        };
        let line = row.to_string();
        assert_eq!(line.chars().count(), Row::HEADING.chars().count());
        assert!(line.contains("1,234,567") && line.contains("1.50 ms") && line.ends_with("0.81"), "{line}");
    }

    #[test]
    fn the_spread_of_an_even_number_of_runs_has_its_median_between_two() {
        assert_eq!(Spread::of(vec![4.0, 1.0, 3.0, 2.0]), Spread { min: 1.0, median: 2.5, max: 4.0 });
    }
}
