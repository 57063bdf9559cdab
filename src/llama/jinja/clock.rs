//! Today's date, for templates that write it.

use std::time::{SystemTime, UNIX_EPOCH};

use super::fault::Fault;

const MONTHS: [&str; 12] = [
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
];
const DAYS: [&str; 7] =
    ["Thursday", "Friday", "Saturday", "Sunday", "Monday", "Tuesday", "Wednesday"];

/// The present time in UTC, as `strftime` writes it.
pub(super) fn now(format: &str) -> Result<String, Fault> {
    let seconds = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_secs());
    strftime(format, seconds)
}

/// `seconds` after 1970 began, as `strftime` writes it.
fn strftime(format: &str, seconds: u64) -> Result<String, Fault> {
    let (days, second) = (seconds / 86_400, seconds % 86_400);
    let (year, month, day) = date(days);
    let hour = second / 3600;
    let mut text = String::new();
    let mut chars = format.chars();
    while let Some(c) = chars.next() {
        if c != '%' {
            text.push(c);
            continue;
        }
        let code = chars.next();
        text.push_str(&match code {
            Some('Y') => year.to_string(),
            Some('y') => format!("{:02}", year % 100),
            Some('m') => format!("{month:02}"),
            Some('B') => MONTHS[month - 1].to_owned(),
            Some('b' | 'h') => MONTHS[month - 1][..3].to_owned(),
            Some('d') => format!("{day:02}"),
            Some('e') => format!("{day:2}"),
            Some('A') => DAYS[(days % 7) as usize].to_owned(),
            Some('a') => DAYS[(days % 7) as usize][..3].to_owned(),
            Some('H') => format!("{hour:02}"),
            Some('I') => format!("{:02}", (hour + 11) % 12 + 1),
            Some('p') => if hour < 12 { "AM" } else { "PM" }.to_owned(),
            Some('M') => format!("{:02}", second / 60 % 60),
            Some('S') => format!("{:02}", second % 60),
            Some('F') => format!("{year}-{month:02}-{day:02}"),
            Some('T') => format!("{hour:02}:{:02}:{:02}", second / 60 % 60, second % 60),
            Some('Z') => "UTC".to_owned(),
            Some('z') => "+0000".to_owned(),
            Some('%') => "%".to_owned(),
            other => {
                let got = other.map_or("the end".to_owned(), |code| format!("{code:?}"));
                return Err(Fault::expected("a code of strftime after %", got));
            }
        });
    }
    Ok(text)
}

/// Year, month and day of a day after 1 January 1970.
fn date(mut days: u64) -> (u64, usize, u64) {
    let leap = |year: u64| {
        year.is_multiple_of(4) && (!year.is_multiple_of(100) || year.is_multiple_of(400))
    };
    let mut year = 1970;
    while days >= 365 + u64::from(leap(year)) {
        days -= 365 + u64::from(leap(year));
        year += 1;
    }
    let mut month = 0;
    let lengths = [31, 28 + u64::from(leap(year)), 31, 30, 31, 30, 31, 31, 30, 31, 30, 31];
    while days >= lengths[month] {
        days -= lengths[month];
        month += 1;
    }
    (year, month + 1, days + 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_are_those_of_the_calendar() {
        let day = |seconds| strftime("%A %d %B %Y %H:%M:%S, %a %d %b %y %I %p", seconds).unwrap();
        assert_eq!(day(0), "Thursday 01 January 1970 00:00:00, Thu 01 Jan 70 12 AM");
        assert_eq!(day(951_782_400), "Tuesday 29 February 2000 00:00:00, Tue 29 Feb 00 12 AM");
        assert_eq!(day(1_767_225_599), "Wednesday 31 December 2025 23:59:59, Wed 31 Dec 25 11 PM");
        assert!(strftime("%Q", 0).is_err());
    }
}
