//! Devices and keys that are not admitted: those that were stolen, and keys that leaked.
//!
//! One entry a line, `device` or `device <= version`: all keys of a device, or those up to a key version. `#` begins a comment.

use holdfast_proto::DeviceId;
use rustc_hash::FxHashMap;

/// Most entries: about 10 MiB of memory. Where more keys than that have leaked, it is the master key that must change.
pub const MAX_DENIED: usize = 50_000;

/// Which key versions of which devices are not admitted.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct DenyList {
    /// The highest version that is denied.
    devices: FxHashMap<DeviceId, u32>,
}

impl DenyList {
    /// Reads the text of a file; the error is one line. Of several entries for one device the widest counts.
    pub fn parse(text: &str) -> Result<Self, String> {
        let mut list = Self::default();
        for (i, line) in text.lines().enumerate() {
            let entry = line.split('#').next().unwrap_or_default().trim();
            if entry.is_empty() {
                continue;
            }
            let (device, version) = read_entry(entry).map_err(|what| format!("line {}: {what}", i + 1))?;
            let denied = list.devices.entry(device).or_default();
            *denied = version.max(*denied);
            if list.devices.len() > MAX_DENIED {
                return Err(format!("line {}: more than {MAX_DENIED} devices", i + 1));
            }
        }
        Ok(list)
    }

    pub fn denies(&self, device: &DeviceId, key_version: u32) -> bool {
        self.devices
            .get(device)
            .is_some_and(|&up_to| key_version <= up_to)
    }

    pub fn len(&self) -> usize {
        self.devices.len()
    }

    pub fn is_empty(&self) -> bool {
        self.devices.is_empty()
    }
}

fn read_entry(entry: &str) -> Result<(DeviceId, u32), String> {
    let (device, version) = match entry.split_once("<=") {
        Some((device, version)) => (device.trim_end(), Some(version.trim_start())),
        None => (entry, None),
    };
    let device = device.parse().map_err(|error| format!("{error}; {WANTED}"))?;
    let version = match version {
        None => u32::MAX,
        Some(digits) if digits.bytes().all(|b| b.is_ascii_digit()) => digits
            .parse()
            .map_err(|_| format!("{digits:?} is not a key version; {WANTED}"))?,
        Some(other) => return Err(format!("{other:?} is not a key version; {WANTED}")),
    };
    Ok((device, version))
}

const WANTED: &str = "wanted is \"device\" or \"device <= version\"";

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn denies(list: &DenyList, device: &str, version: u32) -> bool {
        list.denies(&device.parse().unwrap(), version)
    }

    #[test]
    fn devices_and_versions_are_denied() {
        let text = "# stolen\nlamp-1\n\n tv-2 <= 3 # leaked\r\nx:y<=0\nlamp-9<= 4294967295\n";
        let list = DenyList::parse(text).unwrap();
        assert_eq!(list.len(), 4);
        assert!(denies(&list, "lamp-1", 0) && denies(&list, "lamp-1", u32::MAX));
        assert!(denies(&list, "tv-2", 3) && !denies(&list, "tv-2", 4));
        assert!(denies(&list, "x:y", 0) && !denies(&list, "x:y", 1));
        assert!(denies(&list, "lamp-9", u32::MAX));
        assert!(!denies(&list, "lamp-2", 0) && !denies(&list, "lamp", 0));
        assert!(DenyList::parse(" \n# nothing").unwrap().is_empty());
    }

    #[test]
    fn the_widest_entry_of_a_device_counts() {
        for text in ["a <= 2\na <= 7\na <= 3", "a\na <= 1", "a <= 1\na"] {
            assert!(denies(&DenyList::parse(text).unwrap(), "a", 7), "{text}");
        }
    }

    #[test]
    fn what_is_wrong_is_said_with_its_line() {
        for (text, wanted) in [
            ("a\nb c", "line 2: a device id holds"),
            ("a <= x", "line 1: \"x\" is not a key version"),
            ("\n\na <= 4294967296", "line 3: \"4294967296\" is not"),
            ("a <= -1", "line 1: \"-1\""),
            ("a <= +1", "line 1: \"+1\""),
            ("a <=", "line 1: \"\" is not"),
            ("<= 1", "line 1: a device id has"),
            ("a < 3", "line 1: a device id holds"),
            ("a <= 1 <= 2", "line 1: \"1 <= 2\""),
        ] {
            let error = DenyList::parse(text).unwrap_err();
            assert!(
                error.starts_with(wanted) && !error.contains('\n'),
                "{text:?}: {error}"
            );
        }
        assert!(
            DenyList::parse(&"x".repeat(129))
                .unwrap_err()
                .contains("128 bytes")
        );
    }

    #[test]
    fn entries_are_bounded() {
        let text = |n: usize| (0..n).map(|i| format!("d{i}\n")).collect::<String>();
        assert_eq!(DenyList::parse(&text(MAX_DENIED)).unwrap().len(), MAX_DENIED);
        let error = DenyList::parse(&text(MAX_DENIED + 1)).unwrap_err();
        assert_eq!(error, "line 50001: more than 50000 devices");
    }

    proptest! {
        #[test]
        fn any_text_is_survived(text in "(\\PC|\n){0,100}") {
            let _ = DenyList::parse(&text);
        }
    }
}
