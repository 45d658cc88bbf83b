//! `holdfast up`: a gateway for development. Prepares DIR, starts frontend, backend and demo service, and supervises them.
//!
//! What is deliberately not here: upgrades (starting a second backend beside the first), and several frontends.

pub(crate) mod child;
mod config;
mod keys;
mod prepare;
mod ready;
mod restart;
mod supervise;

use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result, anyhow};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;

use crate::args::UpArgs;
use crate::demo;
use crate::http_client::Http;
use crate::layout::Layout;
use crate::up_json::UpJson;
use child::Spec;
use prepare::Prepared;
use supervise::{Event, Keeper, Wish};

/// The four ports of one gateway.
#[derive(Debug, Clone, Copy)]
struct Ports {
    wss: u16,
    api: u16,
    admin: u16,
    demo: u16,
}

impl Ports {
    /// `base` is at most 65532.
    fn from_base(base: u16) -> Self {
        Self {
            wss: base,
            api: base + 1,
            admin: base + 2,
            demo: base + 3,
        }
    }
}

pub(crate) fn run(dir: &Path, args: &UpArgs) -> Result<ExitCode> {
    let layout = Layout::new(dir)?;
    // One thread: children are tied to the life of the thread that starts them.
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    runtime.block_on(async {
        let mut stop = StopSignals::new()?;
        let prepared = prepare::prepare(&layout, args).await?;
        let up = Up::start(&layout, prepared)?;
        up.run(&layout, &mut stop).await
    })
}

/// A running gateway.
struct Up {
    frontend: Kept,
    backend: Kept,
    events: mpsc::Receiver<Event>,
    demo: JoinHandle<std::io::Result<()>>,
    board: UpJson,
    /// Held as long as this gateway runs.
    _lock: std::fs::File,
}

/// A process under supervision.
struct Kept {
    wish: watch::Sender<Wish>,
    task: JoinHandle<()>,
}

impl Kept {
    fn start(spec: Spec, http: &Http, events: &mpsc::Sender<Event>) -> Self {
        let (wish, receiver) = watch::channel(Wish::Run);
        let keeper = Keeper {
            spec,
            http: http.clone(),
            events: events.clone(),
            wish: receiver,
        };
        Self {
            wish,
            task: tokio::spawn(keeper.run()),
        }
    }

    async fn stop(&mut self, stop: &mut StopSignals) {
        self.wish.send_replace(Wish::Stop);
        tokio::select! {
            _ = &mut self.task => return,
            () = stop.next() => {}
        }
        eprintln!("holdfast: stopping without waiting");
        self.wish.send_replace(Wish::Kill);
        // A panic of the task has dropped its child, which kills it.
        let _ = (&mut self.task).await;
    }
}

impl Up {
    fn start(layout: &Layout, prepared: Prepared) -> Result<Self> {
        let Prepared {
            lock,
            ports,
            api_key,
            api,
            demo,
            frontend_bin,
            backend_bin,
        } = prepared;
        let admin_url = format!("http://127.0.0.1:{}", ports.admin);
        let api_url = format!("http://127.0.0.1:{}", ports.api);
        let http = Http::new()?;
        let (sender, events) = mpsc::channel(EVENTS);
        let frontend = Spec {
            name: FRONTEND,
            binary: frontend_bin,
            config: layout.frontend_config(),
            log: layout.log(FRONTEND),
            listener: None,
            ready_url: format!("{admin_url}/ready"),
            grace: FRONTEND_GRACE,
        };
        let backend = Spec {
            name: BACKEND,
            binary: backend_bin,
            config: layout.backend_config(),
            log: layout.log(BACKEND),
            listener: Some(api),
            ready_url: format!("{api_url}/ready"),
            grace: BACKEND_GRACE,
        };
        let board = UpJson {
            wss: format!("wss://localhost:{}", ports.wss),
            api: api_url,
            api_key,
            ca: layout.ca(),
            frontend_admin: admin_url,
            frontend_pid: 0,
            backend_pid: 0,
            routes: layout.routes(),
            token_key: layout.token_key(),
            up_pid: std::process::id(),
            frontend_restarts: 0,
            backend_restarts: 0,
        };
        Ok(Self {
            frontend: Kept::start(frontend, &http, &sender),
            backend: Kept::start(backend, &http, &sender),
            events,
            demo: tokio::spawn(demo::serve(demo)),
            board,
            _lock: lock,
        })
    }

    async fn run(mut self, layout: &Layout, stop: &mut StopSignals) -> Result<ExitCode> {
        let result = self.watch(layout, stop).await;
        self.backend.stop(stop).await;
        self.frontend.stop(stop).await;
        self.demo.abort();
        match std::fs::remove_file(layout.up_json()) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                eprintln!("holdfast: cannot remove up.json: {error}");
            }
            _ => {}
        }
        result.map(|()| ExitCode::SUCCESS)
    }

    /// Until told to stop, or something failed for good.
    async fn watch(&mut self, layout: &Layout, stop: &mut StopSignals) -> Result<()> {
        let mut announced = false;
        loop {
            let event = tokio::select! {
                () = stop.next() => {
                    eprintln!("holdfast: stopping");
                    return Ok(());
                }
                demo = &mut self.demo => return Err(anyhow!("the demo service ended: {demo:?}")),
                event = self.events.recv() => event.context("the supervisors are gone")?,
            };
            match event {
                Event::Failed { what, log_tail } => {
                    for line in log_tail {
                        eprintln!("  {line}");
                    }
                    return Err(anyhow!("{what} (its log is in {})", layout.logs().display()));
                }
                Event::Ready { name, pid, restarts } => {
                    self.note_ready(name, pid, restarts);
                    if self.board.frontend_pid != 0 && self.board.backend_pid != 0 {
                        self.board.write(layout)?;
                    }
                    if restarts > 0 {
                        eprintln!("holdfast: the {name} is ready again (pid {pid})");
                    }
                }
            }
            if !announced && self.board.frontend_pid != 0 && self.board.backend_pid != 0 {
                announced = true;
                self.announce(layout);
            }
        }
    }

    fn note_ready(&mut self, name: &str, pid: u32, restarts: u32) {
        if name == FRONTEND {
            (self.board.frontend_pid, self.board.frontend_restarts) = (pid, restarts);
        } else {
            (self.board.backend_pid, self.board.backend_restarts) = (pid, restarts);
        }
    }

    fn announce(&self, layout: &Layout) {
        let UpJson {
            wss,
            api,
            frontend_pid,
            backend_pid,
            ..
        } = &self.board;
        let dir = layout.root().display();
        println!(
            "holdfast is up: {wss} (frontend {frontend_pid}), {api} (backend {backend_pid}), files in {dir}"
        );
        println!();
        println!("Try, in other terminals:");
        println!("  holdfast --dir {dir} device                  then type: Demo.Echo {{\"n\":1}}");
        println!("  holdfast --dir {dir} push demo-device '{{\"text\":\"hello\"}}'");
        println!("  holdfast --dir {dir} status");
        println!("  kill -9 {backend_pid}          a crash of the backend: the device stays connected");
        println!();
        println!("Ctrl-C stops everything.");
    }
}

/// Ctrl-C, SIGTERM, and the terminal's end.
struct StopSignals([Signal; 3]);

impl StopSignals {
    fn new() -> Result<Self> {
        let listen = |kind| signal(kind).context("signals");
        Ok(Self([
            listen(SignalKind::interrupt())?,
            listen(SignalKind::terminate())?,
            listen(SignalKind::hangup())?,
        ]))
    }

    async fn next(&mut self) {
        let [interrupt, terminate, hangup] = &mut self.0;
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
            _ = hangup.recv() => {}
        }
    }
}

const FRONTEND: &str = "frontend";
const BACKEND: &str = "backend";
/// Readiness is rare; the supervisors wait when it is not read.
const EVENTS: usize = 16;
/// Above the backend's own default of 30 s for finishing its work.
const BACKEND_GRACE: Duration = Duration::from_secs(35);
const FRONTEND_GRACE: Duration = Duration::from_secs(10);
