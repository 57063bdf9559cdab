//! GGUF files: parts, tensors that overlap, keys, and damage.

use super::*;

#[test]
fn a_split_gguf_file_is_loaded_from_its_first_part() {
    let device = Device::flex();
    let whole = fs::read(folder("llama").join("../../gguf/llama.gguf")).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let part = |index: usize| folder.path().join(format!("tiny-{index:05}-of-00002.gguf"));
    let (mut first, mut second) = halves(&whole);
    fs::write(part(1), &first).unwrap();
    let (message, next_step) = told(&part(1));
    assert!(
        message.ends_with("tiny-00002-of-00002.gguf: expected part 2 of 2, got no such file"),
        "{message}"
    );
    assert!(next_step.starts_with("download all parts into one folder"), "{next_step}");
    fs::write(part(2), &second).unwrap();
    let model = Llama::from_gguf(part(1), &device).unwrap();
    fs::write(folder.path().join("whole.gguf"), &whole).unwrap();
    let plain = Llama::from_gguf(folder.path().join("whole.gguf"), &device).unwrap();
    assert_eq!(logits(&model), logits(&plain));

    let (message, next_step) = told(&part(2));
    assert!(message.ends_with("expected part 1 of 2, got part 2 of 2"), "{message}");
    assert_eq!(next_step, format!("give the first part, {}", part(1).display()));
    let renamed = folder.path().join("renamed.gguf");
    fs::copy(part(1), &renamed).unwrap();
    let (message, _) = told(&renamed);
    assert!(
        message.contains("expected a file name that ends with -00001-of-00002.gguf"),
        "{message}"
    );
    std::mem::swap(&mut first, &mut second);
    fs::write(part(2), &second).unwrap();
    let (message, _) = told(&part(1));
    assert!(message.ends_with("expected part 2 of 2, got part 1 of 2"), "{message}");
}

/// Splits a GGUF file in two: the metadata and half of the tensors, and the other half.
fn halves(whole: &[u8]) -> (Vec<u8>, Vec<u8>) {
    let number = |at: usize| u64::from_le_bytes(whole[at..at + 8].try_into().unwrap()) as usize;
    let (tensors, entries) = (number(8), number(16));
    let mut at = 24;
    let text = |at: &mut usize| {
        let length = number(*at);
        *at += 8 + length;
        String::from_utf8(whole[*at - length..*at].to_vec()).unwrap()
    };
    for _ in 0..entries {
        text(&mut at);
        let kind = whole[at];
        at += 4;
        match kind {
            7 => at += 1,
            4..=6 => at += 4,
            8 => drop(text(&mut at)),
            9 => {
                let (kind, count) = (whole[at], number(at + 4));
                at += 12;
                match kind {
                    8 => (0..count).for_each(|_| drop(text(&mut at))),
                    _ => at += 4 * count,
                }
            }
            other => panic!("type {other}"),
        }
    }
    let metadata = &whole[24..at];
    let mut infos = Vec::new();
    for _ in 0..tensors {
        let start = at;
        text(&mut at);
        let dimensions = whole[at] as usize;
        at += 4 + 8 * dimensions + 4;
        infos.push((whole[start..at].to_vec(), number(at)));
        at += 8;
    }
    let data = &whole[at.next_multiple_of(32)..];
    let end = |tensor: usize| infos.get(tensor).map_or(data.len(), |(_, offset)| *offset);
    let middle = tensors / 2;
    let part = |range: std::ops::Range<usize>, index: u16, metadata: &[u8], count: usize| {
        let string =
            |text: &str| [&(text.len() as u64).to_le_bytes()[..], text.as_bytes()].concat();
        let mut file = b"GGUF\x03\0\0\0".to_vec();
        file.extend((range.len() as u64).to_le_bytes());
        file.extend((count as u64 + 2).to_le_bytes());
        file.extend(metadata);
        for (key, number) in [("split.no", index), ("split.count", 2)] {
            file.extend([&string(key)[..], &2u32.to_le_bytes(), &number.to_le_bytes()].concat());
        }
        let base = infos[range.start].1;
        for (info, offset) in &infos[range.clone()] {
            file.extend(info);
            file.extend(((offset - base) as u64).to_le_bytes());
        }
        file.resize(file.len().next_multiple_of(32), 0);
        file.extend(&data[base..end(range.end)]);
        file
    };
    (part(0..middle, 0, metadata, entries), part(middle..tensors, 1, &[], 0))
}

#[test]
fn tensors_that_share_bytes_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("shared.gguf");
    let message = |file: GgufFile| {
        fs::write(&path, file.bytes()).unwrap();
        Llama::from_gguf(&path, &Device::flex()).unwrap_err().to_string()
    };
    let two =
        |offset| GgufFile::default().tensor("a", &[8], 0, &[0; 32]).tensor_at("b", &[8], 0, offset);
    let shared = message(two(28).zeros(28));
    assert_eq!(shared, "tensor b: expected bytes of its own, got bytes of tensor a");
    assert!(message(two(32)).starts_with("tensor b: expected a file of at least "));
    assert!(message(two(u64::MAX)).starts_with("tensor b: expected an offset inside of the file"));
    assert!(message(two(32).zeros(32)).starts_with("key general.architecture: expected a string"));
}

/// The GGUF file `whole` with additional numbers or texts in its metadata.
fn with_metadata(whole: &[u8], entries: &[(&str, Result<f32, &str>)]) -> Vec<u8> {
    let string = |text: &str| [&(text.len() as u64).to_le_bytes()[..], text.as_bytes()].concat();
    let mut added = Vec::new();
    for (key, value) in entries {
        added.extend(string(key));
        match value {
            Ok(number) => added.extend([6u32.to_le_bytes(), number.to_le_bytes()].concat()),
            Err(text) => added.extend([&8u32.to_le_bytes()[..], &string(text)].concat()),
        }
    }
    // One more entry, with a length that preserves the alignment of the tensors.
    added.extend([&string("filler")[..], &8u32.to_le_bytes()].concat());
    added.extend(string(&"x".repeat((32 - (added.len() + 8) % 32) % 32)));
    let count = u64::from_le_bytes(whole[16..24].try_into().unwrap()) + entries.len() as u64 + 1;
    [&whole[..16], &count.to_le_bytes(), &added, &whole[24..]].concat()
}

#[test]
fn linear_scaling_of_gguf_files_has_two_names_and_needs_no_type() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("scaled.gguf");
    let scaling = |name: &str, entries: &[(&str, Result<f32, &str>)]| {
        let whole =
            fs::read(self::folder("llama").join(format!("../../gguf/{name}.gguf"))).unwrap();
        fs::write(&path, with_metadata(&whole, entries)).unwrap();
        Llama::from_gguf(&path, &Device::flex()).map(|model| model.config().rope_scaling.clone())
    };
    let (kind, factor, older) =
        ("llama.rope.scaling.type", "llama.rope.scaling.factor", "llama.rope.scale_linear");
    assert_eq!(scaling("llama", &[]).unwrap(), RopeScaling::None);
    for entries in [
        &[(older, Ok(4.0))][..],
        &[(factor, Ok(4.0))],
        &[(kind, Err("linear")), (older, Ok(4.0))],
        &[(kind, Err("linear")), (factor, Ok(4.0))],
        &[(older, Ok(2.0)), (factor, Ok(4.0))],
    ] {
        let linear = RopeScaling::Linear { factor: 4.0 };
        assert_eq!(scaling("llama", entries).unwrap(), linear, "{entries:?}");
    }
    let none = scaling("llama", &[(kind, Err("none")), (older, Ok(4.0))]).unwrap();
    assert_eq!(none, RopeScaling::None);
    for (entries, message) in [
        (
            &[(older, Ok(0.0))][..],
            "key rope_scaling.factor: expected a finite number above 0, got 0",
        ),
        (&[(kind, Err("linear"))], "key llama.rope.scaling.factor: expected a number, got none"),
        (&[(kind, Err("yarn"))], "key llama.rope.scaling.factor: expected a number, got none"),
        (
            &[(kind, Err("longrope"))],
            "key llama.rope.scaling.type: expected none, linear or yarn, got longrope",
        ),
    ] {
        assert_eq!(scaling("llama", entries).unwrap_err().to_string(), message);
    }

    let entries =
        [(kind, Err("yarn")), (factor, Ok(4.0)), ("llama.rope.scaling.yarn_beta_slow", Ok(2.0))];
    let yarn = RopeScaling::Yarn {
        factor: 4.0,
        attention_factor: 0.1 * 4f32.ln() + 1.0,
        beta_fast: 32.0,
        beta_slow: 2.0,
        original_context: 128.0,
        truncate: true,
    };
    assert_eq!(scaling("llama", &entries).unwrap(), yarn);

    let RopeScaling::Factors(plain) = scaling("llama3", &[]).unwrap() else { panic!() };
    let RopeScaling::Factors(scaled) = scaling("llama3", &[(older, Ok(4.0))]).unwrap() else {
        panic!()
    };
    assert_eq!(scaled, plain.iter().map(|factor| factor * 4.0).collect::<Vec<_>>());
}

/// A file truncated or overwritten anywhere gives a result or an error, not a crash, and no allocation of a size that a
/// damaged number asks for.
#[test]
fn a_gguf_file_damaged_anywhere_is_an_error_or_a_model() {
    let whole = fs::read(folder("llama").join("../../gguf/llama.gguf")).unwrap();
    let copy = tempfile::tempdir().unwrap();
    let path = copy.path().join("damaged.gguf");
    let loads = |bytes: &[u8]| {
        fs::write(&path, bytes).unwrap();
        Llama::from_gguf(&path, &Device::flex()).map(drop)
    };
    assert!(loads(&whole).is_ok());
    for length in (0..whole.len() - 64).step_by(97).chain(0..256) {
        let message = loads(&whole[..length]).unwrap_err().to_string();
        assert!(message.contains("expected"), "{message}");
    }
    let header = 2500.min(whole.len());
    for at in 0..header {
        for value in [0, 0xff, whole[at] ^ 1] {
            let mut damaged = whole.clone();
            damaged[at] = value;
            if let Err(error) = loads(&damaged) {
                assert!(error.to_string().contains("expected"), "byte {at}: {error}");
            }
        }
    }
}
