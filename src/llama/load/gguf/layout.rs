//! Where the bytes of a GGUF file's tensors are.

use super::{
    quant::Kind,
    reader::{Gguf, Part, TensorInfo},
};
use crate::llama::{error::LoadError, load::tensor_error};

/// The bytes of a tensor in its file.
pub(super) struct Place {
    pub(super) start: u64,
    pub(super) bytes: usize,
    pub(super) elements: usize,
}

/// The place of a tensor, which is inside of the file.
pub(super) fn place(
    name: &str,
    info: &TensorInfo,
    kind: Kind,
    part: &Part,
) -> Result<Place, LoadError> {
    let elements = info.shape.iter().try_fold(1usize, |n, &size| n.checked_mul(size));
    let bytes = elements.and_then(|elements| kind.bytes(elements));
    let (Some(elements), Some(bytes)) = (elements, bytes) else {
        let expected = format!("a whole number of {} blocks", Kind::name(info.kind));
        return Err(tensor_error(name, expected, format!("shape {:?}", info.shape)));
    };
    let start = part.data_start.checked_add(info.offset);
    let end = start.and_then(|start| start.checked_add(bytes as u64));
    let (Some(start), Some(end)) = (start, end) else {
        return Err(tensor_error(name, "an offset inside of the file", info.offset));
    };
    if end > part.len {
        let expected = format!("a file of at least {end} bytes (is it whole?)");
        return Err(tensor_error(name, expected, format!("{} bytes", part.len)));
    }
    Ok(Place { start, bytes, elements })
}

/// Checks that all tensors are inside of their files and do not share bytes. A small file could otherwise describe any
/// number of large tensors. Tensors of unsupported types are not checked, because they are never read.
pub(super) fn check(file: &Gguf) -> Result<(), LoadError> {
    let mut places = Vec::with_capacity(file.tensors.len());
    for (name, info) in &file.tensors {
        if let Some(kind) = Kind::from_id(info.kind) {
            let place = place(name, info, kind, &file.parts[info.part])?;
            places.push((info.part, place.start, place.bytes as u64, name));
        }
    }
    places.sort_unstable();
    for pair in places.windows(2) {
        let [(part, start, bytes, name), (next_part, next_start, _, next)] = pair else {
            continue;
        };
        if part == next_part && start + bytes > *next_start {
            return Err(tensor_error(next, "bytes of its own", format!("bytes of tensor {name}")));
        }
    }
    Ok(())
}
