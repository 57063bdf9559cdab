//! What a program around the decode loop needs: `use esamp::prelude::*;`

pub use crate::{
    CausalLm, Completion, Decoder, Event, HiddenStateTap, Request, Sampler, SamplerConfig,
    Sampling, TapSite,
};
