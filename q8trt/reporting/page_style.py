"""The style sheet of the HTML page: colours for light and dark, and a layout for narrow and wide windows."""

#: s0 to s5 are the series' colours (after Okabe and Ito, told apart with any colour vision), lighter on dark ground.
STYLE = """
:root { --ground: #ffffff; --panel: #f6f7f9; --ink: #1c2026; --faint: #5b6470; --rule: #d5dae1;
  --good: #00704f; --bad: #a8380a;
  --s0: #4d5763; --s1: #0067a3; --s2: #c24e00; --s3: #00805c; --s4: #a8487f; --s5: #8a6d00; }
@media (prefers-color-scheme: dark) { :root { --ground: #14171b; --panel: #1d2127; --ink: #e8eaed; --faint: #a3acb8;
  --rule: #363d47; --good: #4cd3a5; --bad: #ff9a66;
  --s0: #b4bdc9; --s1: #62b6f0; --s2: #f39a4a; --s3: #41cf9f; --s4: #e893c3; --s5: #e0c350; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--ground); color: var(--ink); font: 15px/1.5 system-ui, "DejaVu Sans", sans-serif; }
main { max-width: 1400px; margin: 0 auto; padding: 20px 16px 48px; }
h1 { font-size: 1.5rem; line-height: 1.25; margin: 0 0 8px; overflow-wrap: anywhere; }
h2 { font-size: 1.1rem; margin: 32px 0 10px; padding-bottom: 4px; border-bottom: 1px solid var(--rule); }
.faint { color: var(--faint); font-size: 0.85rem; margin: 6px 0; }
.places { display: flex; flex-wrap: wrap; gap: 6px; list-style: none; margin: 0; padding: 0; }
.place { background: var(--panel); border: 1px solid var(--rule); border-radius: 999px; padding: 1px 12px; font-size: 0.85rem; }
.scroll { overflow-x: auto; }
table { border-collapse: separate; border-spacing: 0; font-size: 0.85rem; font-variant-numeric: tabular-nums; }
th, td { padding: 4px 10px; border-bottom: 1px solid var(--rule); text-align: left; white-space: nowrap; }
th { color: var(--faint); font-weight: 600; vertical-align: bottom; }
.number { text-align: right; }
.passed { color: var(--good); } .failed { color: var(--bad); font-weight: 600; }
.prose td:nth-child(3) { white-space: normal; min-width: 18em; overflow-wrap: anywhere; }
section + header { margin-top: 48px; }
@media (max-width: 700px) { .prose td:first-child { white-space: normal; min-width: 7em; }
  .prose td:nth-child(3) { min-width: 13em; } }
th.number { white-space: normal; min-width: 4.5em; }
th:first-child, td:first-child { position: sticky; left: 0; background: var(--ground); font-weight: 600; }
.verdict { padding-left: 0; list-style: none; margin: 12px 0 18px; }
.verdict li { padding: 3px 0 3px 26px; position: relative; overflow-wrap: anywhere; }
.verdict li::before { position: absolute; left: 4px; }
.faster::before { content: "▲"; color: var(--good); }
.slower::before { content: "▼"; color: var(--bad); }
.plain::before { content: "·"; font-weight: bold; }
.notes { padding-left: 18px; margin: 0; color: var(--faint); font-size: 0.9rem; }
header p { margin: 6px 0; }
@media (max-width: 700px) { th, td { padding: 4px 5px; } td:nth-child(2) { white-space: normal; min-width: 7.5em; } }
.plots { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 400px), 1fr)); gap: 14px; align-items: start; }
figure { margin: 0; background: var(--panel); border: 1px solid var(--rule); border-radius: 8px; padding: 10px 12px; }
figcaption { display: flex; flex-direction: column; }
figcaption .faint { margin: 0; }
.legend { display: flex; flex-wrap: wrap; gap: 2px 14px; margin: 4px 0 6px; font-size: 0.85rem; }
.legend span { display: inline-flex; align-items: center; gap: 5px; }
.swatch { width: 14px; height: 14px; flex: none; }
.chart { display: block; width: 100%; height: auto; }
.chart text { fill: var(--ink); font-size: 12px; font-family: inherit; font-variant-numeric: tabular-nums; }
.chart .tick, .chart .label { fill: var(--faint); }
.grid { stroke: var(--rule); stroke-width: 1; }
.reference { stroke: var(--faint); stroke-width: 1.5; stroke-dasharray: 5 4; }
.line { fill: none; stroke-width: 2; }
.mark { stroke: var(--panel); stroke-width: 1; }
.s0.line { stroke: var(--s0); } .s1.line { stroke: var(--s1); } .s2.line { stroke: var(--s2); }
.s3.line { stroke: var(--s3); } .s4.line { stroke: var(--s4); } .s5.line { stroke: var(--s5); }
.s0.mark, .s0.bar { fill: var(--s0); } .s1.mark, .s1.bar { fill: var(--s1); } .s2.mark, .s2.bar { fill: var(--s2); }
.s3.mark, .s3.bar { fill: var(--s3); } .s4.mark, .s4.bar { fill: var(--s4); } .s5.mark, .s5.bar { fill: var(--s5); }
details { margin-top: 28px; }
summary { font-weight: 600; cursor: pointer; }
.provenance, .provenance ul { padding-left: 18px; margin: 0; font-size: 0.85rem; overflow-wrap: anywhere; }
"""
