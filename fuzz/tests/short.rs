//! A short campaign of every target, always with the same inputs.

use std::time::Duration;

use esamp_fuzz::{
    campaign::{Folder, Limits, run},
    targets,
};

/// A second on most machines: it is the number of executions that makes runs equal.
const LIMITS: Limits = Limits { executions: 20_000, time: Duration::from_secs(10) };

fn short(name: &str) {
    let target = targets::named(name).unwrap_or_else(|| panic!("{name}: no such target"));
    match run(&target, 1, LIMITS, &Folder::of_the_checkout()) {
        Ok(done) => assert!(done.outcomes > 2, "{name}: {done:?}: the inputs reach too little"),
        Err(fault) => panic!("{name}: {}: {}", fault.input.display(), fault.what),
    }
}

macro_rules! campaigns {
    ($($name:ident)*) => {
        $(
            #[test]
            fn $name() {
                short(stringify!($name));
            }
        )*

        #[test]
        fn every_target_has_a_campaign() {
            assert_eq!(targets::ALL.map(|target| target.name), [$(stringify!($name)),*]);
        }
    };
}

campaigns!(gguf safetensors tokenizer template snapshot group trace settings step);
