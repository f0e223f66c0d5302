//! A noisy tenant and a quiet one: where the quiet one's job stands behind a hundred thousand of the other's.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::json;
use tidewire::store::{Claim, Leased, QueueLimits, Settle, TenantLimits};
use tidewire::{App, Id, Job, JobContext, NewJob, Request, TenantId, Verdict, done};
use tokio::sync::mpsc::unbounded_channel;
use tokio::sync::watch;

const CATALOG: &str = r#"
[app]
name = "shop"
tenant = "shopId"
[queues.work]
[jobs.pack]
queue = "work"
"#;

const BACKLOG: usize = 100_000;
const AT_ONCE: usize = 20_000;

struct Shop {
    _dir: tempfile::TempDir,
    app: App,
    loud: TenantId,
    quiet: TenantId,
}

impl Shop {
    async fn open() -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        std::fs::write(dir.path().join("app.toml"), CATALOG).expect("the catalog");
        let app = App::builder(dir.path()).store("memory:").build().await.expect("an app");
        let (loud, quiet) = (TenantId::new("loud").expect("a tenant"), TenantId::new("quiet").expect("a tenant"));
        for _ in 0..BACKLOG / AT_ONCE {
            let jobs = (0..AT_ONCE).map(|_| NewJob::new("pack", json!({}))).collect();
            app.commit(&loud, Request { jobs, ..Request::default() }).await.expect("enqueued");
        }
        Self { _dir: dir, app, loud, quiet }
    }

    async fn limit(&self, limits: QueueLimits) {
        self.app.store().limit_queues(BTreeMap::from([("work".into(), limits)])).await.expect("limits");
    }

    async fn one_of_the_quiet(&self) -> Id {
        let job = NewJob::new("pack", json!({}));
        self.app.enqueue_job(&self.quiet, job).await.expect("enqueued").jobs[0].id.clone()
    }

    async fn claim(&self, max: u32) -> Vec<Leased> {
        let claim = Claim {
            tenant: None,
            queues: Vec::new(),
            kinds: Vec::new(),
            max,
            lease: Duration::from_secs(3_600),
            wait: Duration::ZERO,
            worker: "worker".into(),
            local: false,
            reserved: false,
        };
        self.app.store().claim(claim).await.expect("leased")
    }

    /// How many jobs come before this one, if it is among the next `most`.
    async fn place(&self, id: &Id, most: u32) -> Option<usize> {
        self.claim(most).await.iter().position(|leased| leased.job.tenant == self.quiet && leased.job.id == *id)
    }

    async fn waiting(&self) -> u64 {
        self.app.store().counts(Some(&self.loud)).await.expect("counts")["work"][&tidewire::JobState::Pending]
    }
}

#[tokio::test]
async fn a_single_job_is_among_the_next_behind_a_hundred_thousand() {
    let shop = Shop::open().await;
    for (loud, quiet) in [(1, 1), (2, 1), (16, 1), (3, 2), (1, 10), (100, 1)] {
        let own = |weight| TenantLimits { weight: Some(weight), ..TenantLimits::default() };
        let tenants = BTreeMap::from([(shop.loud.clone(), own(loud)), (shop.quiet.clone(), own(quiet))]);
        shop.limit(QueueLimits { tenants, ..QueueLimits::default() }).await;
        // Wherever in its turns the loud one is.
        for before in [0, 1, 7, 40] {
            if before > 0 {
                assert_eq!(shop.claim(before).await.len(), before as usize, "the loud one has its turns");
            }
            let id = shop.one_of_the_quiet().await;
            let place = shop.place(&id, loud + 1).await;
            assert!(place.is_some(), "weights {loud} and {quiet}, after {before}: not among the next {}", loud + 1);
        }
    }
    assert!(shop.waiting().await > 90_000, "the backlog is as long as before");
}

#[tokio::test]
async fn a_single_job_is_the_next_when_the_others_may_run_only_so_many() {
    let shop = Shop::open().await;
    shop.limit(QueueLimits { per_tenant: Some(5), ..QueueLimits::default() }).await;
    let running = shop.claim(100).await;
    assert_eq!(running.len(), 5);
    for _ in 0..3 {
        assert!(shop.claim(100).await.is_empty(), "the loud one is at its limit");
        let id = shop.one_of_the_quiet().await;
        assert_eq!(shop.place(&id, 1).await, Some(0));
    }
    // A place that is free again is the loud one's; the quiet one still comes at once.
    let Leased { job, lease, .. } = &running[0];
    let verdict = Verdict::Done { result: None };
    let settle = Settle { tenant: None, id: job.id.clone(), lease: lease.clone(), verdict, effects: None };
    shop.app.store().settle(settle).await.expect("settled");
    let id = shop.one_of_the_quiet().await;
    assert!(shop.place(&id, 2).await.is_some());
    assert_eq!(shop.waiting().await, BACKLOG as u64 - 6);
}

#[derive(Serialize, Deserialize)]
struct Pack {
    ends: bool,
}

impl Job for Pack {
    const TYPE: &'static str = "pack";
}

#[tokio::test]
async fn a_quiet_tenant_begins_while_the_jobs_of_a_loud_one_fill_the_queue() {
    let dir = tempfile::tempdir().expect("a directory");
    let catalog = CATALOG.replace("[queues.work]", "[queues.work]\nconcurrency = 4\nreserve = 1");
    std::fs::write(dir.path().join("app.toml"), catalog).expect("the catalog");
    let (began, mut begun) = unbounded_channel();
    let (ends, may_end) = watch::channel(false);
    let run = move |job: Pack, cx: JobContext| {
        began.send(cx.tenant().clone()).expect("the test waits");
        let mut may_end = may_end.clone();
        async move {
            if job.ends {
                drop(may_end.wait_for(|may| *may).await);
            } else {
                cx.cancelled().await;
            }
            done()
        }
    };
    let app = App::builder(dir.path()).store("memory:").job(run).build().await.expect("an app");
    let [loud, quiet, other] = ["loud", "quiet", "other"].map(|name| TenantId::new(name).expect("a tenant"));
    let enqueue = async |tenant: &TenantId, ends: bool, count: usize| {
        let jobs = (0..count).map(|_| NewJob::new("pack", json!({ "ends": ends }))).collect();
        app.commit(tenant, Request { jobs, ..Request::default() }).await.expect("enqueued");
    };
    let mut next = async || {
        let began = tokio::time::timeout(Duration::from_secs(20), begun.recv());
        began.await.expect("a job begins").expect("a tenant")
    };
    enqueue(&loud, true, 1).await;
    assert_eq!(next().await, loud);
    enqueue(&quiet, true, 1).await;
    assert_eq!(next().await, quiet);
    enqueue(&loud, false, 100).await;
    assert_eq!(next().await, loud);
    // Before the queue knew two tenants, either may have taken the slot that is kept.
    ends.send_replace(true);
    assert_eq!([next().await, next().await], [loud.clone(), loud.clone()]);
    enqueue(&other, false, 1).await;
    assert_eq!(next().await, other, "three of four run until the end, and one slot was kept");
    app.stop().await;
}
