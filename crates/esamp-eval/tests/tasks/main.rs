//! The tasks of `evaluate`: what the checkers accept, and that the splits are disjoint.

#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

mod checkers;
mod reasoning_gym;
mod splits;

use std::collections::{HashMap, HashSet};

use esamp_eval::{
    record::Split,
    tasks::{
        self, Problem, Task, Verdict,
        gcd::{divisor_in, gcd},
        letters::{count, count_in},
        names::LISTS,
        numbers::{last_number, numbers},
        products::product_in,
        reasoning_gym::{Entry, FILE, Generator, ProblemSet},
        sentences::Constraint,
    },
};
