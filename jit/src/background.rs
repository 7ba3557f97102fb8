//! Cranelift on threads of its own, so that compiling never stalls the guest.

use crate::abi::{Code, Job, Knobs, Runtime, Untranslatable};
use crate::cranelift::Cranelift;
use crate::region::Region;
use crate::slots::Slot;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::{Duration, Instant};

/// A region to compile, with what its code will point to.
pub struct Request {
    pub region: Arc<Region>,
    pub block: u32,
    /// [`trimaran_cpu::Vcpu::blocks_cleared`] when `block` was looked up.
    pub clears: u32,
    pub id: u32,
    pub slots: Arc<[Slot]>,
    pub runtime: Runtime,
    /// Linear address of its entry when it was asked for.
    pub rip: u64,
    pub knobs: Knobs,
}

pub struct Finished {
    pub request: Request,
    pub code: Result<Code, Untranslatable>,
    pub time: Duration,
}

/// One vCPU's compiler thread. It ends when this is dropped.
pub struct Background {
    requests: Sender<Request>,
    finished: Receiver<Finished>,
    /// Requests that have not come back yet.
    waiting: usize,
}

impl Background {
    /// So many requests may wait: a guest makes code warm faster than it can be compiled.
    const MOST_WAITING: usize = 64;

    pub fn new() -> Self {
        let (requests, work) = channel::<Request>();
        let (done, finished) = channel();
        let thread = std::thread::Builder::new().name("translator".into());
        let spawned = thread.spawn(move || {
            let mut cranelift = Cranelift::new();
            while let Ok(request) = work.recv() {
                let started = Instant::now();
                let slots = request.slots.as_ptr() as usize;
                let Request { region, runtime, knobs, .. } = &request;
                let job = Job { knobs: *knobs, ..Job::new(region, slots, runtime) };
                let code = cranelift.compile(&job);
                let time = started.elapsed();
                if done.send(Finished { request, code, time }).is_err() {
                    break;
                }
            }
        });
        if let Err(error) = spawned {
            tracing::warn!("no thread for Cranelift ({error}): hot code stays as the first tier left it");
        }
        Background { requests, finished, waiting: 0 }
    }

    pub fn has_room(&self) -> bool {
        self.waiting < Self::MOST_WAITING
    }

    /// Asks for a region. False: the thread is gone.
    pub fn ask(&mut self, request: Request) -> bool {
        let sent = self.requests.send(request).is_ok();
        self.waiting += usize::from(sent);
        sent
    }

    /// What has been compiled meanwhile.
    pub fn finished(&mut self) -> Option<Finished> {
        let finished = self.finished.try_recv().ok()?;
        self.waiting = self.waiting.saturating_sub(1);
        Some(finished)
    }
}
