//! The contents of records.

use super::*;

#[test]
fn records_contain_the_answers_solutions_and_totals() {
    let folder = Folder::new();
    let path = folder.file("run.jsonl");
    let header = header(&tiny_tasks(), ARMS);
    assert_eq!(run(&header, &path, None).unwrap(), Ended::Complete);
    let run = Run::read(&path).unwrap();
    assert_eq!(run.header, header);
    assert_eq!(run.records.len(), 2 * 3 * 3 * 2, "seeds, problems, arms, tasks");
    let detokenizer = TinyLm::detokenizer();
    for record in &run.records {
        assert_eq!(record.completions.len(), 4);
        for completion in &record.completions {
            let right = record.task == "syllables";
            assert_eq!(completion.correct, Some(right));
            assert_eq!(completion.tokens.len(), if right { 10 } else { 12 });
            assert_eq!(completion.text, detokenizer.decode(&completion.tokens).unwrap());
            assert_eq!(completion.mode.as_deref(), right.then_some(&completion.text[..2]));
            assert_eq!(completion.answer.is_some(), right);
            assert_eq!(completion.finish, "max_new_tokens");
            let plain = record.arm == "min-p-1";
            assert_eq!(completion.mean_kl == 0.0, plain);
            assert_eq!(completion.mean_novelty.is_none(), plain);
        }
        let tokens = record.completions.iter().map(|c| c.tokens.len() as u64).sum::<u64>();
        assert_eq!(record.totals.tokens, tokens);
        let steered = if record.arm == "min-p-1" { 0 } else { tokens - 4 }; // all but the first ones
        assert_eq!((record.totals.steered, record.totals.not_finite), (steered, 0));
    }
}

/// Compares every value of a record with a decoder run here and with its traces.
#[test]
fn a_record_says_what_a_plain_decode_loop_gives() {
    let header =
        Header { problems: 1, token_arm: Some("esamp-0.5".into()), ..header(&tiny_tasks(), ARMS) };
    let folder = Folder::new();
    let path = folder.file("run.jsonl");
    run(&header, &path, None).unwrap();
    let model = TinyLm::new(1, &Device::flex());
    for record in Run::read(&path).unwrap().records {
        let arm = header.arms.iter().find(|arm| arm.name == record.arm).unwrap();
        let recorder = Arc::new(Mutex::new(Recorder::new()));
        let sampler = arm.sampler.init(model.d_model(), &model.device()).unwrap();
        let mut decoder = Decoder::new(&model, sampler).unwrap().with_observer(recorder.clone());
        let request = Request::new(encode(&record.prompt).unwrap())
            .with_completions(4)
            .with_max_new_tokens(if record.task == "syllables" { 10 } else { 12 })
            .with_seed(record.seed)
            .with_sampling(arm.sampling.sampling())
            .with_reference_log_probs();
        decoder.submit(request).unwrap();
        let completions = decoder.run(|_| ControlFlow::Continue(())).unwrap();
        // Reading a fraction back from a file may change its last digit.
        let (got, expected) = (record.batch_counters, *decoder.sampler().counters());
        assert_eq!(
            (got.steps, got.tokens, got.steered, got.interventions, got.updates, got.candidates),
            (
                expected.steps,
                expected.tokens,
                expected.steered,
                expected.interventions,
                expected.updates,
                expected.candidates
            )
        );
        assert!((got.novelty_sum - expected.novelty_sum).abs() < 1e-9);
        let recorder = recorder.lock().unwrap();
        let mut interventions = 0;
        for (index, (got, expected)) in record.completions.iter().zip(&completions).enumerate() {
            assert_eq!(got.tokens, expected.tokens());
            let traces: Vec<_> =
                recorder.tokens().filter(|t| t.completion == expected.id).collect();
            let mean = |numbers: Vec<f64>| numbers.iter().sum::<f64>() / numbers.len() as f64;
            let close = |got: f64, expected: f64| assert!((got - expected).abs() < 1e-9);
            let log_probs =
                expected.choices.iter().map(|c| f64::from(c.reference_log_prob.unwrap()));
            close(got.log_prob_sum, log_probs.sum());
            let log_probs = expected.choices.iter().map(|c| f64::from(c.log_prob));
            close(got.sampling_log_prob_sum, log_probs.sum());
            close(got.mean_entropy, mean(traces.iter().map(|t| t.entropy).collect()));
            let reference = traces.iter().map(|t| t.reference_entropy).collect();
            close(got.mean_reference_entropy, mean(reference));
            close(got.mean_kl, mean(traces.iter().map(|t| t.kl).collect()));
            close(got.mean_candidates, mean(traces.iter().map(|t| t.candidates as f64).collect()));
            let some = |number: fn(&esamp::telemetry::RowTrace) -> Option<f64>| {
                let numbers: Vec<f64> = traces.iter().filter_map(|t| number(t)).collect();
                (!numbers.is_empty()).then(|| mean(numbers))
            };
            let pairs = [
                (got.mean_novelty, some(|t| t.novelty.map(f64::from))),
                (got.mean_relative_novelty, some(|t| t.relative_novelty)),
                (got.mean_slope, some(|t| t.slope)),
                (got.mean_sharpening, some(|t| t.sharpening)),
            ];
            for (got, expected) in pairs {
                assert_eq!(got.is_some(), expected.is_some());
                close(got.unwrap_or(0.0), expected.unwrap_or(0.0));
            }
            interventions += traces
                .iter()
                .filter(|t| t.unsteered_token.is_some_and(|token| token != t.token))
                .count() as u64;
            let kept: Vec<&TokenRecord> =
                record.token_sample.iter().filter(|kept| kept.completion == index).collect();
            if record.arm != "esamp-0.5" {
                assert!(kept.is_empty());
                continue;
            }
            assert_eq!(kept.len(), traces.len() - 1, "all but the first");
            for (kept, trace) in kept.iter().zip(&traces[1..]) {
                assert_eq!((kept.position, kept.token), (trace.position, trace.token));
                close(kept.novelty, f64::from(trace.novelty.unwrap()));
                close(kept.relative_novelty, trace.relative_novelty.unwrap());
                close(kept.surprisal, f64::from(trace.model_surprisal.unwrap()));
                close(kept.reference_entropy, trace.reference_entropy);
            }
        }
        assert_eq!(record.totals.interventions, interventions);
    }
}

#[test]
fn every_arm_runs_and_those_that_should_learn_do() {
    let model = TinyLm::new(1, &Device::flex());
    let tasks: Vec<Box<dyn Task>> = vec![Box::new(Syllables)];
    let mut header = Header { problems: 2, seeds: 1, ..header(&tasks, "all") };
    // Its stems are those of capitalised words, which this vocabulary does not have.
    header.arms.retain(|arm| arm.name != "recoding");
    let problems = problems_of(&tasks, Split::Dev, 2).unwrap();
    for unit in plan::units(&header) {
        let arm = &header.arms[unit.arm];
        let records = run::run_unit(&subject(&model), &header, &unit, &problems[0]).unwrap();
        let counters = records[0].batch_counters;
        let updates = match arm.name.as_str() {
            "frozen-0.5" | "frozen-0.5-open" | "sharpen-0.5" | "cool-0.5" => 0,
            // The shared distiller and the one of each prompt both learn.
            "esamp-0.5-adaptive" => 3 * 9,
            "esamp-0.5-shared" => 9,
            _ if arm.role == Role::Method || arm.role == Role::Control => 2 * 9,
            _ => 0,
        };
        assert_eq!(counters.updates, updates, "{}", arm.name);
        let steers = updates > 0 || arm.name.starts_with("frozen-0.5");
        assert_eq!(counters.steered, if steers { 8 * 9 } else { 0 }, "{}", arm.name);
        let sharpening = records[0].completions[0].mean_sharpening;
        match arm.name.as_str() {
            "sharpen-0.5" => assert!((sharpening.unwrap() - 0.5).abs() < 1e-5, "{sharpening:?}"),
            "orthogonal-1" => assert!(sharpening.unwrap().abs() < 1e-5, "{sharpening:?}"),
            "crowding" | "crowding-open" => assert!(sharpening.is_some()),
            _ => assert_eq!(sharpening.is_some(), steers, "{}", arm.name),
        }
        let warm_up = if arm.prompt_warm_up > 0 { 2 * 20 } else { 0 };
        assert_eq!(counters.warm_up_updates, warm_up, "{}", arm.name);
    }
}

/// A model that answers even questions but not odd ones.
#[test]
fn right_answers_are_counted_as_the_script_has_them() {
    struct Even;

    impl Task for Even {
        fn name(&self) -> &'static str {
            "even"
        }

        fn what(&self) -> &'static str {
            "say what was said"
        }

        fn tokens(&self) -> usize {
            3
        }

        fn problems(&self) -> Vec<Problem> {
            let problem = |n: usize| {
                let find = |text: &str| text.chars().next().map(String::from);
                Problem::with_answer(n.to_string(), n.to_string(), find)
            };
            (0..10).map(problem).collect()
        }
    }

    let device = Device::flex();
    let model = ScriptedLm::new(10, &device, |sequence| {
        let said = if sequence[0] % 2 == 0 { sequence[0] } else { 0 };
        (0..10).map(|token| if token == said { 40.0 } else { 0.0 }).collect()
    });
    let digits = |tokens: &[TokenId]| -> Result<String, TextError> {
        Ok(tokens.iter().map(TokenId::to_string).collect())
    };
    let subject = Subject {
        model: &model,
        encode: Box::new(|text| Ok(vec![text.parse().unwrap()])),
        detokenizer: Arc::new(digits),
        stop_tokens: Vec::new(),
    };
    let tasks: Vec<Box<dyn Task>> = vec![Box::new(Even)];
    for split in [Split::Dev, Split::HeldOut] {
        let header = Header { problems: 5, split, ..header(&tasks, "min-p-1,orthogonal-1") };
        let problems = problems_of(&tasks, split, 5).unwrap();
        for unit in plan::units(&header) {
            for record in run::run_unit(&subject, &header, &unit, &problems[0]).unwrap() {
                let asked: u64 = record.prompt.parse().unwrap();
                let said = if asked.is_multiple_of(2) { record.prompt.clone() } else { "0".into() };
                for completion in record.completions {
                    assert_eq!(completion.text, said.repeat(3));
                    assert_eq!(completion.answer.as_ref(), Some(&said));
                    assert_eq!(completion.correct, Some(asked.is_multiple_of(2)), "{asked}");
                    assert!(completion.log_prob_sum.abs() < 1e-6, "it was sure");
                }
            }
        }
    }
}
