//! A line chart as SVG. Pure. It knows nothing of what is drawn.

use std::fmt::Write as _;

const WIDTH: f64 = 760.0;
const HEIGHT: f64 = 360.0;
const LEFT: f64 = 76.0;
const RIGHT: f64 = 16.0;
const TOP: f64 = 16.0;
const BOTTOM: f64 = 48.0;
/// Colours that are told apart by most people, and in print.
const COLOURS: [&str; 4] = ["#0b5fa5", "#777777", "#d55e00", "#009e73"];

/// An axis.
pub(super) struct Axis {
    pub(super) label: &'static str,
    pub(super) from: f64,
    pub(super) to: f64,
    /// Where a line is drawn, and what stands beside it.
    pub(super) ticks: Vec<(f64, String)>,
    /// Whether distances are ratios. Then `from` is above 0.
    pub(super) logarithmic: bool,
}

/// A line.
pub(super) struct Line {
    pub(super) name: String,
    pub(super) points: Vec<(f64, f64)>,
    /// Which colour.
    pub(super) colour: usize,
    pub(super) dashes: Dashes,
}

/// How a line is drawn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Dashes {
    None,
    Long,
    Short,
}

impl Axis {
    /// An axis from 0 to a round number past `most`.
    pub(super) fn linear(label: &'static str, most: f64, show: impl Fn(f64) -> String) -> Self {
        let step = round_step(most.max(f64::MIN_POSITIVE) / 5.0);
        let steps = (most / step).ceil().max(1.0);
        let ticks = (0..=steps as u32).map(|n| f64::from(n) * step);
        let ticks = ticks.map(|at| (at, show(at))).collect();
        Self { label, from: 0.0, to: steps * step, ticks, logarithmic: false }
    }

    /// An axis that holds `least` to `most`, both above 0, with lines at 1, 2 and 5 of each
    /// power of ten.
    pub(super) fn logarithmic(
        label: &'static str,
        least: f64,
        most: f64,
        show: impl Fn(f64) -> String,
    ) -> Self {
        let least = least.max(1e-9);
        let most = most.max(least * 1.01);
        let all: Vec<f64> = (least.log10().floor() as i32..=most.log10().ceil() as i32)
            .flat_map(|power| [1.0, 2.0, 5.0].map(|digit| digit * 10_f64.powi(power)))
            .collect();
        let from = all.iter().copied().rfind(|at| *at <= least).unwrap_or(least);
        let to = all.iter().copied().find(|at| *at >= most).unwrap_or(most);
        let inside = all.into_iter().filter(|at| (from..=to).contains(at));
        let ticks = inside.map(|at| (at, show(at))).collect();
        Self { label, from, to, ticks, logarithmic: true }
    }

    /// Where a value stands, from 0 to 1.
    fn place(&self, value: f64) -> f64 {
        let value = value.clamp(self.from, self.to);
        let (from, to, value) = match self.logarithmic {
            true => (self.from.ln(), self.to.ln(), value.ln()),
            false => (self.from, self.to, value),
        };
        if to > from { (value - from) / (to - from) } else { 0.0 }
    }
}

/// 1, 2 or 5 times a power of ten, no less than `at_least`.
fn round_step(at_least: f64) -> f64 {
    let power = 10_f64.powf(at_least.log10().floor());
    [1.0, 2.0, 5.0, 10.0]
        .into_iter()
        .map(|digit| digit * power)
        .find(|step| *step >= at_least)
        .unwrap_or(power * 10.0)
}

/// `text` as it may stand in HTML and SVG, also in an attribute.
pub(super) fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\'' => out.push_str("&#39;"),
            c if c.is_control() && c != '\n' => out.push('\u{fffd}'),
            c => out.push(c),
        }
    }
    out
}

/// Draws `lines`. `title` is for those who cannot see.
pub(super) fn chart(title: &str, x: &Axis, y: &Axis, lines: &[Line]) -> String {
    let across = |value: f64| LEFT + x.place(value) * (WIDTH - LEFT - RIGHT);
    let up = |value: f64| HEIGHT - BOTTOM - y.place(value) * (HEIGHT - TOP - BOTTOM);
    let (bottom, right) = (HEIGHT - BOTTOM, WIDTH - RIGHT);
    let legend = lines.len() as f64 * 20.0;
    let mut svg = String::new();
    let mut put = |text: std::fmt::Arguments<'_>| {
        svg.write_fmt(text).expect("a String takes everything");
        svg.push('\n');
    };
    let name = escape(title);
    let height = HEIGHT + legend;
    put(format_args!(
        r#"<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" role="img" aria-label="{name}">"#
    ));
    put(format_args!("<title>{name}</title>"));
    for (value, label) in &x.ticks {
        let (at, label) = (across(*value), escape(label));
        put(format_args!(
            r#"<line class="grid" x1="{at:.1}" y1="{TOP}" x2="{at:.1}" y2="{bottom}"/>"#
        ));
        put(format_args!(
            r#"<text x="{at:.1}" y="{:.1}" text-anchor="middle">{label}</text>"#,
            bottom + 16.0
        ));
    }
    for (value, label) in &y.ticks {
        let (at, label) = (up(*value), escape(label));
        put(format_args!(
            r#"<line class="grid" x1="{LEFT}" y1="{at:.1}" x2="{right}" y2="{at:.1}"/>"#
        ));
        put(format_args!(
            r#"<text x="{:.1}" y="{:.1}" text-anchor="end">{label}</text>"#,
            LEFT - 6.0,
            at + 4.0
        ));
    }
    let (middle_x, middle_y) = ((LEFT + right) / 2.0, (TOP + bottom) / 2.0);
    put(format_args!(
        r#"<text x="{middle_x}" y="{}" text-anchor="middle">{}</text>"#,
        bottom + 36.0,
        escape(x.label)
    ));
    put(format_args!(
        r#"<text x="14" y="{middle_y}" text-anchor="middle" transform="rotate(-90 14 {middle_y})">{}</text>"#,
        escape(y.label)
    ));
    for (n, line) in lines.iter().enumerate() {
        let colour = COLOURS[line.colour % COLOURS.len()];
        let dash = match line.dashes {
            Dashes::None => "",
            Dashes::Long => r#" stroke-dasharray="7 4""#,
            Dashes::Short => r#" stroke-dasharray="2 3""#,
        };
        let points: Vec<_> = line
            .points
            .iter()
            .filter(|(x, y)| x.is_finite() && y.is_finite())
            .map(|(x, y)| format!("{:.1},{:.1}", across(*x), up(*y)))
            .collect();
        put(format_args!(
            r#"<polyline fill="none" stroke="{colour}" stroke-width="2"{dash} points="{}"/>"#,
            points.join(" ")
        ));
        let at = HEIGHT + n as f64 * 20.0 + 4.0;
        put(format_args!(
            r#"<line stroke="{colour}" stroke-width="2"{dash} x1="{LEFT}" y1="{at}" x2="{}" y2="{at}"/>"#,
            LEFT + 28.0
        ));
        put(format_args!(
            r#"<text x="{}" y="{}">{}</text>"#,
            LEFT + 36.0,
            at + 4.0,
            escape(&line.name)
        ));
    }
    put(format_args!("</svg>"));
    svg
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Fails unless every element is closed, in order, and nothing is left unescaped.
    pub(crate) fn assert_well_formed(text: &str) {
        let mut open: Vec<String> = Vec::new();
        for (n, part) in text.split('<').enumerate() {
            if n == 0 {
                assert!(!part.contains('>'), "{part}");
                continue;
            }
            let (tag, rest) = part.split_once('>').unwrap_or_else(|| panic!("open tag: {part}"));
            assert!(!rest.contains('>'), "a bare > in {rest}");
            for entity in rest.split('&').skip(1) {
                assert!(entity.split(';').next().is_some_and(|name| name.len() < 6), "{entity}");
            }
            assert_eq!(tag.matches('"').count() % 2, 0, "{tag}");
            let name = |tag: &str| {
                tag.split(|c: char| c.is_whitespace()).next().unwrap_or_default().to_owned()
            };
            if let Some(closed) = tag.strip_prefix('/') {
                assert_eq!(open.pop().as_deref(), Some(closed));
            } else if !tag.ends_with('/') && !tag.starts_with('!') {
                open.push(name(tag));
            }
        }
        assert_eq!(open, Vec::<String>::new());
    }

    fn drawn(points: Vec<(f64, f64)>, name: &str) -> String {
        let most = points.iter().map(|point| point.1).fold(1.0, f64::max);
        let x = Axis::linear("x", 10.0, |at| format!("{at}"));
        let y = Axis::logarithmic("y", 0.5, most, |at| format!("{at}"));
        let line = Line { name: name.to_owned(), points, colour: 9, dashes: Dashes::Long };
        chart("a <title> & more", &x, &y, &[line])
    }

    #[test]
    fn a_chart_is_well_formed_whatever_its_names() {
        let svg = drawn(vec![(0.0, 1.0), (10.0, 1000.0)], "<script>'\"&\u{7}");
        assert_well_formed(&svg);
        assert!(!svg.contains("<script") && svg.contains("&lt;script"));
        assert_well_formed(&drawn(Vec::new(), ""));
    }

    #[test]
    fn axes_hold_what_they_were_made_for() {
        let axis = Axis::linear("", 437.0, |at| at.to_string());
        assert_eq!((axis.to, axis.ticks.len()), (500.0, 6));
        assert_eq!(Axis::linear("", 0.0, |at| at.to_string()).place(0.0), 0.0);
        let axis = Axis::logarithmic("", 3.0, 70.0, |at| at.to_string());
        assert_eq!((axis.from, axis.to), (2.0, 100.0));
        let ticks: Vec<_> = axis.ticks.iter().map(|tick| tick.0.round()).collect();
        assert_eq!(ticks, [2.0, 5.0, 10.0, 20.0, 50.0, 100.0]);
    }

    proptest! {
        #[test]
        fn every_point_is_inside_the_picture(
            points in prop::collection::vec((-5.0..20.0_f64, -1e9..1e9_f64), 0..50),
        ) {
            let svg = drawn(points, "n");
            let drawn = svg.split("points=\"").nth(1).and_then(|rest| rest.split('"').next());
            for point in drawn.unwrap_or_default().split_whitespace() {
                let (x, y) = point.split_once(',').expect("a pair");
                let (x, y): (f64, f64) = (x.parse().unwrap(), y.parse().unwrap());
                prop_assert!((LEFT..=WIDTH - RIGHT).contains(&x), "{}", point);
                prop_assert!((TOP..=HEIGHT - BOTTOM).contains(&y), "{}", point);
            }
        }
    }
}
