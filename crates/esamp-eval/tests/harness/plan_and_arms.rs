//! The plan, the arms, entropy matching, and samples of tokens.

use super::*;

#[test]
fn all_arms_have_run_the_same_problems_wherever_a_run_stops() {
    let header = Header { problems: 5, ..header(&tiny_tasks(), ARMS) };
    let units = plan::units(&header);
    let mut keys: Vec<plan::Key> = units.iter().flat_map(|unit| unit.keys(&header)).collect();
    assert_eq!(keys.len(), 2 * 5 * 2 * 3);
    for whole in (0..units.len()).step_by(3) {
        let met = |arm: usize| -> Vec<_> {
            let of_arm = units[..whole].iter().filter(|unit| unit.arm == arm);
            of_arm.map(|unit| (unit.task, unit.seed, unit.problems.clone())).collect()
        };
        assert!(met(0) == met(1) && met(1) == met(2));
    }
    keys.sort();
    keys.dedup();
    assert_eq!(keys.len(), 60, "each once");
}

#[test]
fn a_problem_is_a_batch_unless_it_shares_a_distiller() {
    let arms = "min-p-1,esamp-0.5,esamp-0.5-shared,esamp-0.5-adaptive";
    let together = Header { problems: 5, batch: 3, ..header(&tiny_tasks(), arms) };
    let alone = Header { one_by_one: true, ..together.clone() };
    let units = plan::units(&alone);
    for unit in &units {
        let group = if unit.problems.start < 3 { 0..3 } else { 3..5 };
        if unit.arm < 2 {
            assert_eq!(unit.problems.len(), 1);
        } else {
            assert_eq!(unit.problems, group);
        }
    }
    let keys = |header: &Header| -> Vec<plan::Key> {
        plan::units(header).iter().flat_map(|unit| unit.keys(header)).collect()
    };
    assert_eq!(keys(&alone), keys(&together), "in the same order");
}

#[test]
fn arms_are_found_by_name() {
    let all = arms::all();
    for arm in &all {
        assert_eq!(arms::named(&arm.name).unwrap(), std::slice::from_ref(arm));
        arm.sampling.sampling().validate().unwrap();
        arm.sampler.init(32, &Device::flex()).unwrap();
    }
    assert_eq!(arms::named("all").unwrap(), all);
    let headline = arms::named("headline").unwrap();
    assert_eq!(headline.len(), 8);
    assert_eq!(headline.iter().filter(|arm| arm.role == Role::Frontier).count(), 3);
    let matched = arms::named("min-p-0.93, fire").unwrap();
    assert_eq!((matched[0].sampling.settings.temperature, matched[0].role), (0.93, Role::Frontier));
    for (names, wording) in [
        ("esamp", "--arms: expected the name of an arm, got esamp"),
        ("min-p-1.0", "--arms: expected the name of an arm, got min-p-1.0"),
        ("min-p--1", "--arms: expected the name of an arm, got min-p--1"),
        ("", "--arms: expected the name of an arm, got "),
        ("fire,fire", "--arms: expected each arm once, got fire twice"),
    ] {
        assert_eq!(error(arms::named(names)), wording);
    }
}

#[test]
fn the_matched_temperature_is_found_by_halving() {
    // An entropy of 1.5 nats per unit of temperature.
    for target in [0.9, 1.23, 2.0] {
        let mut tries = 0;
        let tried = entropy::halve(target, |temperature| {
            tries += 1;
            Ok(1.5 * f64::from(temperature))
        });
        let best = *tried.unwrap().last().unwrap();
        assert!((f64::from(best.temperature) - target / 1.5).abs() <= 0.011, "{best:?}");
        assert!(tries <= 8);
    }
    for target in [0.01, 9.0] {
        let wording = format!(
            "--match-entropy: expected an entropy that min-p has between T 0.2 and T 2, got {target}"
        );
        let found = entropy::halve(target, |temperature| Ok(1.5 * f64::from(temperature)));
        assert_eq!(error(found), wording);
    }
}

#[test]
fn entropy_is_matched_on_the_model() {
    let model = TinyLm::new(1, &Device::flex());
    let tasks = tiny_tasks();
    let header = Header { problems: 2, seeds: 1, ..header(&tasks, ARMS) };
    let problems = problems_of(&tasks, Split::Dev, 2).unwrap();
    // An arm on the frontier is its own control.
    let arm = arms::min_p_at(0.8);
    let matched =
        entropy::match_entropy(&subject(&model), &header, &problems, &arm, |_, _| {}).unwrap();
    let best = matched.tried.last().unwrap();
    assert!((best.entropy - matched.target).abs() < 0.05, "{matched:?}");
}

#[test]
fn a_sample_of_tokens_is_of_a_fixed_size_and_in_order() {
    let token = |at: usize| TokenRecord {
        completion: at / 100,
        position: at as u64 % 100,
        token: 0,
        novelty: at as f64,
        relative_novelty: 0.0,
        surprisal: 0.0,
        reference_entropy: 0.0,
    };
    for (count, left) in [(0, 0), (512, 512), (513, 512), (1600, 512)] {
        let all: Vec<TokenRecord> = (0..count).map(token).collect();
        let mut kept = all.clone();
        run::decimate(&mut kept);
        assert_eq!(kept.len(), left);
        assert!(kept.is_sorted_by(|a, b| a.novelty < b.novelty), "in order, and each once");
    }
    assert_eq!(TOKEN_SAMPLE, 512);
    // Which of 1600 are kept does not depend on their position: a mean of 49.5 ± 1.05 (28.9 / √512, and a
    // third less).
    let mut kept: Vec<TokenRecord> = (0..1600).map(token).collect();
    run::decimate(&mut kept);
    let mean = kept.iter().map(|kept| kept.position as f64).sum::<f64>() / 512.0;
    assert!((mean - 49.5).abs() < 4.0, "{mean}");
}

#[test]
fn ranks_by_hand() {
    let folder = Folder::new();
    let path = folder.file("run.jsonl");
    run(&Header { seeds: 1, ..header(&tiny_tasks(), "min-p-1") }, &path, None).unwrap();
    let mut record: ProblemRecord = Run::read(&path).unwrap().records.remove(0);
    record.completions.truncate(2);
    record.completions[0].tokens = vec![5, 3, 5];
    record.completions[1].tokens = vec![9, 3, 5, 1];
    let ranks = FrequencyRanks::count([&record]);
    // 9 and 1 occur once each and share ranks 2 and 3; 7 does not occur and ranks after all four tokens.
    assert_eq!([5, 3, 9, 1, 7].map(|token| ranks.of(token)), [0.0, 1.0, 2.5, 2.5, 4.0]);
}
