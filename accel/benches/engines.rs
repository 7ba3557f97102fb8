//! `cargo x bench engines`: the same programs on the host itself, the interpreter, the translator, and KVM.
#![cfg_attr(all(target_os = "linux", target_arch = "x86_64"), allow(unsafe_code))]

#[cfg(all(target_os = "linux", target_arch = "x86_64"))]
mod programs;

#[cfg(not(all(target_os = "linux", target_arch = "x86_64")))]
fn main() {
    println!("skipped: the host itself and KVM can be compared on Linux on x86-64 only");
}

#[cfg(all(target_os = "linux", target_arch = "x86_64"))]
fn main() {
    linux::main();
}

#[cfg(all(target_os = "linux", target_arch = "x86_64"))]
mod linux {
    use super::programs::PROGRAMS;
    use std::time::{Duration, Instant};
    use trimaran_accel::{DATA_BYTES, Kind, Kvm, Program};
    use trimaran_cpu::engine::{EngineFactory, Interpreter};
    use trimaran_cpu::model::Model;
    use trimaran_jit::Jit;

    /// A run takes this long at least; the best of three counts.
    const LEAST_TIME: Duration = Duration::from_millis(30);

    /// Something that runs a program for a number of rounds: its time and its result.
    type Runner<'a> = Box<dyn FnMut(u64) -> Option<(Duration, u64)> + 'a>;

    /// Code and data of the host's own.
    struct Native(*mut u8);

    impl Native {
        fn new(body: &[u8]) -> Option<Self> {
            let bytes = 0x1000 + DATA_BYTES as usize;
            let rights = libc::PROT_READ | libc::PROT_WRITE | libc::PROT_EXEC;
            let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
            // SAFETY: a fresh mapping, which stays until the program ends.
            let at = unsafe { libc::mmap(std::ptr::null_mut(), bytes, rights, flags, -1, 0) };
            if at == libc::MAP_FAILED || body.len() > 0x1000 {
                return None;
            }
            // SAFETY: the first page of the mapping is the code's.
            unsafe { std::ptr::copy_nonoverlapping(body.as_ptr(), at.cast(), body.len()) };
            Some(Native(at.cast()))
        }

        fn run(&self, rounds: u64) -> (Duration, u64) {
            // SAFETY: the programs are functions of this kind, and touch nothing but their data and the stack.
            let body: extern "sysv64" fn(*mut u8, u64) -> u64 = unsafe { std::mem::transmute(self.0) };
            let begun = Instant::now();
            // SAFETY: the data follow the page of code.
            let result = body(unsafe { self.0.add(0x1000) }, rounds);
            (begun.elapsed(), result)
        }
    }

    /// Nanoseconds a round.
    fn measure(run: &mut Runner) -> Option<f64> {
        let mut rounds = 1;
        loop {
            let times: Option<Vec<Duration>> = (0..3).map(|_| run(rounds).map(|(time, _)| time)).collect();
            let time = times?.into_iter().min()?;
            if time >= LEAST_TIME {
                return Some(time.as_nanos() as f64 / rounds as f64);
            }
            rounds *= 4;
        }
    }

    pub fn main() {
        let kvm = Kvm::open();
        match &kvm {
            Ok(kvm) if kvm.report().kind() == Kind::Software => {
                println!("KVM here is made of software: its figures are not those of hardware.\n");
            }
            Ok(_) => println!("KVM here is the processor's own.\n"),
            Err(reason) => println!("skipped: the columns of KVM: {reason}\n"),
        }
        let model = kvm.as_ref().map_or(Model::default(), |kvm| kvm.reduce(&Model::default()));
        let (interpreter, jit) = (Interpreter, Jit::default());
        let mut columns: Vec<(&str, &dyn EngineFactory, u8)> =
            vec![("interp", &interpreter, 3), ("jit", &jit, 3)];
        if let Ok(kvm) = &kvm {
            columns.extend([("kvm, CPL 3", kvm as &dyn EngineFactory, 3), ("kvm, CPL 0", kvm, 0)]);
        }
        let names: Vec<&str> = columns.iter().map(|column| column.0).collect();
        println!("Microseconds a round natively; engines in times of that.\n");
        println!("| | native | {} |\n|---|---:|{}", names.join(" | "), "---:|".repeat(names.len()));
        for (name, program) in PROGRAMS {
            let body = program().expect("a program of this file assembles");
            let Some(native) = Native::new(&body) else {
                return println!("skipped: no memory for native code");
            };
            let mut host: Runner = Box::new(|rounds| Some(native.run(rounds)));
            let expected = host(3).map(|(_, result)| result);
            let base = measure(&mut host).unwrap_or(f64::NAN);
            let mut line = format!("| {name} | {:.2} |", base / 1e3);
            for &(_, factory, cpl) in &columns {
                let mut program = Program::new(factory, &model, cpl, &body);
                let mut runner: Runner = Box::new(move |rounds| program.run(rounds));
                let right = runner(3).map(|(_, result)| result) == expected;
                line += &match measure(&mut runner).filter(|_| right) {
                    Some(time) => format!(" {:.1} |", time / base),
                    None => " failed |".into(),
                };
            }
            println!("{line}");
        }
    }
}
