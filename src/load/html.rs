//! One run as a page that stands alone: no script, no font, no request to anywhere. Pure.

use std::fmt::Write as _;

use super::{
    floor::Floor,
    record::{INTERVAL, Latency},
    report::Report,
    svg::{Axis, Dashes, Line, chart, escape},
};

const STYLE: &str = "body{font:15px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;\
padding:0 1rem;color:#1b1f24;background:#fff}h1{font-size:1.4rem}h2{font-size:1.1rem;margin-top:2rem}\
table{border-collapse:collapse;margin:.5rem 0}td,th{padding:.2rem .8rem;text-align:right;\
border-bottom:1px solid #ddd}th:first-child,td:first-child{text-align:left}\
svg{width:100%;height:auto;font:12px system-ui,sans-serif}svg text{fill:#444}\
.grid{stroke:#e4e4e4;stroke-width:1}";

/// The page.
pub fn page(report: &Report) -> String {
    let title = format!("keyward bench {}", report.scenario.name());
    let mut page = String::from("<!DOCTYPE html>\n<html lang=\"en\">\n<head>\n");
    let mut put = |text: &str| {
        page.push_str(text);
        page.push('\n');
    };
    put("<meta charset=\"utf-8\"/>");
    put("<meta name=\"viewport\" content=\"width=device-width\"/>");
    put(&format!("<title>{}</title>", escape(&title)));
    put(&format!("<style>{STYLE}</style>\n</head>\n<body>"));
    put(&format!("<h1>{}</h1>", escape(&title)));
    put(&format!("<p>{}</p>", escape(&report.summary())));
    put("<h2>Latency by percentile</h2>");
    put(&latency_chart(report));
    put("<h2>Throughput over time</h2>");
    put(&throughput_chart(report));
    put("<h2>Latency, microseconds</h2>");
    put(&latency_table(report));
    let ratios = report.ratios();
    if !ratios.is_empty() {
        put("<h2>Ratios to the floors of this run</h2>");
        let rows = ratios.iter().map(|ratio| [ratio.what.into(), format!("{:.3}", ratio.value)]);
        put(&table(&["ratio", "value"].map(str::to_owned), rows));
    }
    if !report.outcome.errors.is_empty() {
        put("<h2>Errors</h2>");
        let errors = report.outcome.errors.iter();
        let rows = errors.map(|(reason, count)| [reason.clone(), count.to_string()]);
        put(&table(&["reason", "count"].map(str::to_owned), rows));
    }
    if !report.notes.is_empty() {
        put("<h2>Notes</h2>\n<ul>");
        report.notes.iter().for_each(|note| put(&format!("<li>{}</li>", escape(note))));
        put("</ul>");
    }
    put("</body>\n</html>");
    page
}

/// Every latency that there is, with its name; ours first.
fn latencies(report: &Report) -> Vec<(String, &Latency)> {
    let ours = report.outcome.latency.iter().map(|latency| ("measured".to_owned(), latency));
    let floors = report.named_floors();
    let floors = floors.into_iter().map(|(name, floor)| (name, &floor.latency));
    ours.chain(floors).collect()
}

fn measured(points: Vec<(f64, f64)>) -> Line {
    Line { name: "measured".to_owned(), points, colour: 0, dashes: Dashes::None }
}

/// The line of the `n`th of the floors, which come in pairs: before and after.
fn floor(n: usize, name: String, points: Vec<(f64, f64)>) -> Line {
    let dashes = if n.is_multiple_of(2) { Dashes::Long } else { Dashes::Short };
    Line { name, points, colour: 1 + n / 2, dashes }
}

fn latency_chart(report: &Report) -> String {
    let ours = report.outcome.latency.iter().map(|latency| measured(latency.curve.clone()));
    let floors = report.named_floors().into_iter().enumerate();
    let floors = floors.map(|(n, (name, of))| floor(n, name, of.latency.curve.clone()));
    let lines: Vec<_> = ours.chain(floors).collect();
    let all = || lines.iter().flat_map(|line| &line.points);
    let least = all().map(|point| point.1).fold(f64::INFINITY, f64::min);
    let most = all().map(|point| point.1).fold(0.0, f64::max);
    let least = if least.is_finite() { least } else { 1.0 };
    let shares = ["0 %", "90 %", "99 %", "99.9 %", "99.99 %", "99.999 %"];
    let x = Axis {
        label: "share of operations that were no slower",
        from: 0.0,
        to: 5.0,
        ticks: (0..).map(f64::from).zip(shares.map(str::to_owned)).collect(),
        logarithmic: false,
    };
    let y = Axis::logarithmic("latency", least, most, micros);
    chart("Latency by percentile", &x, &y, &lines)
}

fn throughput_chart(report: &Report) -> String {
    let interval = INTERVAL.as_secs_f64();
    let outcome = &report.outcome;
    let end = outcome.seconds.max(interval);
    let points = (0..).zip(&outcome.intervals).map(|(n, count)| {
        let begin = f64::from(n) * interval;
        // The last may be shorter than the others.
        let length = (end - begin).clamp(interval / 100.0, interval);
        (begin + length / 2.0, *count as f64 / length)
    });
    let mut lines = vec![measured(points.collect())];
    let highest = lines[0].points.iter().map(|point| point.1).fold(1.0, f64::max);
    // A floor far above would press what was measured flat: then its figure must do.
    let most = highest * 1.5;
    for (n, (name, Floor { throughput, .. })) in report.named_floors().into_iter().enumerate() {
        let line = match *throughput <= most {
            true => floor(n, name, vec![(0.0, *throughput), (end, *throughput)]),
            false => floor(n, format!("{name}: {throughput:.0}, above the plot"), Vec::new()),
        };
        lines.push(line);
    }
    let most = lines.iter().flat_map(|line| &line.points).map(|point| point.1).fold(1.0, f64::max);
    let x = Axis::linear("seconds", end, short);
    let y = Axis::linear("operations per second", most, short);
    chart("Throughput over time", &x, &y, &lines)
}

fn latency_table(report: &Report) -> String {
    let mut head = vec![String::new(), "count".into()];
    if let Some((_, latency)) = latencies(report).first() {
        head.extend(latency.named().map(|(name, _)| name.replace('_', ".")));
    }
    let rows = latencies(report).into_iter().map(|(name, latency)| {
        let mut row = vec![name, latency.count.to_string()];
        row.extend(latency.named().map(|(_, value)| format!("{value:.1}")));
        row
    });
    table(&head, rows)
}

fn table<R: AsRef<[String]>>(head: &[String], rows: impl Iterator<Item = R>) -> String {
    let line = |cells: &[String], tag: &str| {
        let mut row = String::from("<tr>");
        for cell in cells {
            write!(row, "<{tag}>{}</{tag}>", escape(cell)).expect("a String takes everything");
        }
        row + "</tr>\n"
    };
    let body: String = rows.map(|row| line(row.as_ref(), "td")).collect();
    format!("<table>\n{}{body}</table>", line(head, "th"))
}

/// Microseconds, in the unit that reads best.
fn micros(value: f64) -> String {
    match value {
        value if value >= 1e6 => format!("{} s", short(value / 1e6)),
        value if value >= 1e3 => format!("{} ms", short(value / 1e3)),
        value => format!("{} µs", short(value)),
    }
}

/// A number of a scale, without noise from its binary form.
fn short(value: f64) -> String {
    let rounded = (value * 1e3).round() / 1e3;
    format!("{rounded}")
}

#[cfg(test)]
mod tests {
    use super::{
        super::{report::tests::report, svg::tests::assert_well_formed},
        *,
    };

    #[test]
    fn a_page_has_both_plots_and_asks_nobody_for_anything() {
        let page = page(&report(200));
        assert_well_formed(&page);
        assert_eq!(page.matches("<svg").count(), 2);
        assert!(page.contains("Latency by percentile") && page.contains("Throughput over time"));
        assert!(page.contains("tonic echo, after"));
        // The one address is the name of SVG itself.
        assert_eq!(page.matches("http").count(), 2);
        assert!(!page.contains("<script") && !page.contains("src="));
        assert!(page.contains("a &lt;fast&gt; one"));
    }

    #[test]
    fn a_page_of_a_run_without_floors_and_answers_is_a_page() {
        let mut bare = report(200);
        bare.floors = None;
        bare.outcome.latency = None;
        bare.outcome.intervals = vec![0];
        bare.outcome.errors.insert("OVERLOADED".into(), 3);
        let page = page(&bare);
        assert_well_formed(&page);
        assert!(page.contains("OVERLOADED"));
        assert!(!page.contains("NaN") && !page.contains("inf"));
    }

    #[test]
    fn microseconds_are_shown_in_a_unit_that_fits() {
        assert_eq!([5.0, 2000.0, 1e6].map(micros), ["5 µs", "2 ms", "1 s"]);
    }
}
