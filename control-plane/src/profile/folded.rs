//! What `perf script` prints, as folded stacks: `thread;outermost;…;innermost 17`, the form that flame graph tools read.
//!
//! ```text
//! weft-control                    a sample: the thread,
//!          25eb680 inner          then its frames from the innermost outwards,
//!          257b81d outer
//!                                 then an empty line
//! ```

use std::collections::HashMap;
use std::fmt::Write;

/// Most different stacks that are kept; further ones are counted together.
const STACKS_MAX: usize = 20_000;

/// Most frames of one stack; what is further out is left off.
const FRAMES_MAX: usize = 256;

/// Stacks and how often each was seen. Lines are given to [`Folded::line`] as they come.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Folded {
    stacks: HashMap<String, u64>,
    /// Samples whose stack was one too many.
    other: u64,
    thread: String,
    /// Of the sample that is being read, from the innermost.
    frames: Vec<String>,
}

impl Folded {
    /// The next line; an empty one ends a sample.
    pub fn line(&mut self, line: &str) {
        let text = line.trim();
        if text.is_empty() {
            return self.end();
        }
        if !line.starts_with(char::is_whitespace) {
            self.end();
            self.thread = named(text);
            return;
        }
        // Address, then the name.
        let name = text.split_once(char::is_whitespace).map_or(text, |(_, name)| name.trim());
        if name != "[unknown]" && self.frames.len() < FRAMES_MAX {
            self.frames.push(named(name));
        }
    }

    fn end(&mut self) {
        let thread = std::mem::take(&mut self.thread);
        let frames = std::mem::take(&mut self.frames);
        if thread.is_empty() {
            return;
        }
        let mut stack = thread;
        for frame in frames.iter().rev() {
            stack.push(';');
            stack.push_str(frame);
        }
        let is_full = self.stacks.len() >= STACKS_MAX;
        match self.stacks.get_mut(&stack) {
            Some(seen) => *seen += 1,
            None if is_full => self.other += 1,
            None => {
                self.stacks.insert(stack, 1);
            }
        }
    }

    /// Samples so far.
    pub fn samples(&self) -> u64 {
        self.stacks.values().sum::<u64>() + self.other
    }

    /// One line a stack, those seen most often first.
    pub fn text(&self) -> String {
        let mut all: Vec<_> = self.stacks.iter().map(|(stack, seen)| (stack.as_str(), *seen)).collect();
        all.sort_unstable_by(|a, b| b.1.cmp(&a.1).then_with(|| a.0.cmp(b.0)));
        if self.other > 0 {
            all.push(("other", self.other));
        }
        let mut text = String::new();
        for (stack, seen) in all {
            writeln!(text, "{stack} {seen}").expect("writing to a string does not fail");
        }
        text
    }
}

/// Names must not hold what divides frames.
fn named(name: &str) -> String {
    name.replace(';', ":")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn folded(text: &str) -> Folded {
        let mut folded = Folded::default();
        text.lines().for_each(|line| folded.line(line));
        folded.line("");
        folded
    }

    #[test]
    fn equal_stacks_are_one_line_from_the_outermost_inwards() {
        let text = "weft-control \n\t  25eb680 core::cmp::min\n\t 257b81d run\n\tffffffffffffffff [unknown]\n\n\
                    wal \n\t 1 fdatasync\n\n\
                    weft-control \n\t  25eb999 core::cmp::min\n\t 257b81d run\n\n";
        let folded = folded(text);
        assert_eq!(folded.text(), "weft-control;run;core::cmp::min 2\nwal;fdatasync 1\n");
        assert_eq!(folded.samples(), 3);
    }

    #[test]
    fn names_with_spaces_and_semicolons_stay_one_frame() {
        let folded = folded("a b\n\t 1 <T as [u8; 4]>::f\n\n");
        assert_eq!(folded.text(), "a b;<T as [u8: 4]>::f 1\n");
    }

    #[test]
    fn a_sample_without_frames_counts_for_its_thread_and_nothing_gives_nothing() {
        assert_eq!(folded("idle\n\nidle\n").text(), "idle 2\n");
        assert_eq!(folded("").text(), "");
        assert_eq!(folded("\t 1 frame without a thread\n\n").text(), "");
    }

    #[test]
    fn stacks_and_their_depth_are_bounded() {
        let mut folded = Folded::default();
        for i in 0..STACKS_MAX + 5 {
            folded.line(&format!("t{i}"));
            folded.line("");
        }
        assert!(folded.text().ends_with("other 5\n"));
        assert_eq!(folded.samples(), STACKS_MAX as u64 + 5);
        let deep = format!("t\n{}\n", "\t 1 f\n".repeat(10 * FRAMES_MAX));
        assert_eq!(super::Folded::default().text(), "");
        let text = self::folded(&deep).text();
        assert_eq!(text.matches(";f").count(), FRAMES_MAX);
    }
}
