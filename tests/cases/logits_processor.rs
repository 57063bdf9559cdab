//! Custom changes to the logits: their place in the step, and that they fail alone.

use std::sync::{Arc, Mutex};

use super::{
    decode_loop::{run, sampler},
    penalties::{
        Context, GENERATED, PROMPT, VOCAB, check_filters, check_fusion, everything, naive_adjusted,
        row,
    },
};
use crate::device;
use esamp::{
    Decoder, FinishReason, Request, Sampling, TokenId, TokenMask, errors::RowError,
    filters::RowContext, testing::TinyLm,
};

/// Masks token 6, raises the odd ones and stretches the even ones.
fn process(row: &RowContext<'_>, logits: &mut [f32]) -> Result<(), RowError> {
    assert_eq!((row.prompt, row.generated), (&PROMPT[..], &GENERATED[..]));
    for (token, logit) in logits.iter_mut().enumerate() {
        *logit = match token {
            6 => f32::NEG_INFINITY,
            _ if token % 2 == 1 => *logit + 0.75,
            _ => *logit * 1.5,
        };
    }
    Ok(())
}

/// The logits after penalties, bias and the processor.
fn naive_processed(reference: &[f32]) -> Vec<f32> {
    let mut logits = naive_adjusted(reference);
    for (token, logit) in logits.iter_mut().enumerate() {
        *logit = if token % 2 == 1 { *logit + 0.75 } else { *logit * 1.5 };
    }
    logits[6] = f32::NEG_INFINITY;
    logits
}

fn with_processor(sampling: Sampling) -> Sampling {
    everything(sampling).with_logits_processor(process)
}

#[test]
fn what_a_processor_adds_is_not_multiplied_by_the_fusion() {
    check_fusion(with_processor, naive_processed);
}

#[test]
fn filters_and_masks_come_after_a_processor() {
    check_filters(with_processor, naive_processed);
    let context = Context::new(1);
    let raise = |_: &RowContext<'_>, logits: &mut [f32]| {
        (logits[4], logits[8]) = (60.0, 50.0);
        Ok(())
    };
    let sampling = Sampling::paper().with_logits_processor(raise).checked().unwrap();
    assert_eq!(context.step(row(0, &sampling)).unwrap().token, 4);
    let mut allowed = TokenMask::all(VOCAB);
    allowed.set(4, false);
    assert_eq!(context.step(row(0, &sampling).with_allowed(&allowed)).unwrap().token, 8);
}

/// Four of five prompts fail at their fourth token, each in another way.
#[test]
fn a_processor_that_fails_ends_its_own_completions() {
    type Fault = fn(&mut [f32]) -> Result<(), RowError>;
    let faults: [(Fault, &str); 4] = [
        (|_| Err(RowError::processor("no more")), "logits processor: no more"),
        (|_| panic!("a bug"), "logits processor: panic: a bug"),
        (
            |logits| {
                logits[2] = f32::NAN;
                Ok(())
            },
            "logits processor: expected numbers or -inf, got NaN for token 2",
        ),
        (
            |logits| {
                logits.fill(f32::NEG_INFINITY);
                Ok(())
            },
            "logits: expected at least one token above -inf, got none in 64",
        ),
    ];
    let request = |prompt: TokenId, fault: Option<Fault>| {
        let sampling = Sampling::new().with_logits_processor(
            move |row: &RowContext<'_>, logits: &mut [f32]| match fault {
                Some(fault) if row.position == 3 => fault(logits),
                _ => {
                    logits[row.completion.index as usize] += 1.0;
                    Ok(())
                }
            },
        );
        Request::new(vec![prompt]).with_sampling(sampling).with_completions(2).with_seed(1)
    };
    let tokens = |faults: &[(Fault, &str)]| {
        let mut decoder =
            Decoder::new(TinyLm::new(3, &device()), sampler(TinyLm::D_MODEL)).unwrap();
        for at in 0..5 {
            let fault = faults.get(at).map(|&(fault, _)| fault);
            decoder.submit(request(at as TokenId, fault).with_max_new_tokens(8)).unwrap();
        }
        let completions = run(&mut decoder);
        assert_eq!((decoder.is_idle(), decoder.sampler().distillers()), (true, 0));
        completions
    };
    let undisturbed = tokens(&[]);
    for (got, whole) in tokens(&faults).iter().zip(&undisturbed) {
        let prompt = got.id.prompt.0 as usize;
        let Some((_, wording)) = faults.get(prompt) else {
            // Not the other numbers, which depend on the size of the batch by rounding.
            assert_eq!((got.tokens(), &got.finish), (whole.tokens(), &whole.finish));
            continue;
        };
        let FinishReason::Failed(error) = &got.finish else {
            panic!("{:?}", got.finish);
        };
        assert_eq!(error.to_string(), *wording);
        assert_eq!(got.tokens(), whole.tokens()[..3]);
    }
}

#[test]
fn a_processor_is_called_once_per_row_and_step() {
    let calls = Arc::new(Mutex::new(Vec::new()));
    let seen = calls.clone();
    let count = move |row: &RowContext<'_>, _: &mut [f32]| {
        seen.lock().unwrap().push((row.completion.index, row.generated.to_vec()));
        Ok(())
    };
    let mut decoder = Decoder::new(TinyLm::new(3, &device()), sampler(TinyLm::D_MODEL)).unwrap();
    let sampling = Sampling::new().with_logits_processor(count);
    let request = Request::new(vec![1]).with_sampling(sampling).with_completions(2);
    decoder.submit(request.with_max_new_tokens(3)).unwrap();
    let completions = run(&mut decoder);
    let mut calls = calls.lock().unwrap().clone();
    calls.sort();
    let parts = completions.iter().flat_map(|completion| {
        (0..3).map(|length| (completion.id.index, completion.tokens()[..length].to_vec()))
    });
    assert_eq!(calls, parts.collect::<Vec<_>>());
}
