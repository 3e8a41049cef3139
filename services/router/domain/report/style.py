"""The one style sheet of a report: light and dark, on screens and on paper."""

STYLE = """
:root { color-scheme: light dark; --ink: #1b1f24; --soft: #5b6570; --paper: #fff; --card: #f6f7f9; --rule:
  #dde1e6; --a: #2f6db5; --b: #d2641c; --good: #1d7f46; --bad: #c0302b; --wait: #8a6100; --l2: #7a4fb0; --l3:
  #16837d; --l4: #b03a79; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6e9ed; --soft: #9aa5b1; --paper: #14171b; --card:
  #1d2127; --rule: #333a43; --a: #6fa8e8; --b: #f0914e; --good: #55c285; --bad: #f0736c; --wait: #e0b040;
  --l2: #b692e6; --l3: #4fc3bb; --l4: #e67fb3; } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 2rem 1.25rem 4rem; max-width: 62rem; background: var(--paper); color:
  var(--ink); font: 15px/1.5 system-ui, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif; }
h1 { font-size: 1.7rem; line-height: 1.2; margin: .2rem 0 .4rem; }
h2 { font-size: 1.15rem; margin: 2.4rem 0 .6rem; }
h3 { font-size: 1rem; margin: 0; }
p { margin: .3rem 0; }
.badge { display: inline-block; padding: .15rem .7rem; border-radius: 1rem; font-weight: 600; color:
  var(--paper); background: var(--wait); }
.badge.good { background: var(--good); }
.badge.bad { background: var(--bad); }
.soft, figcaption, footer { color: var(--soft); }
code, .mono { font-family: ui-monospace, "DejaVu Sans Mono", monospace; font-size: .92em; overflow-wrap:
  anywhere; }
dl { display: grid; grid-template-columns: minmax(9rem, max-content) 1fr; gap: .15rem 1.2rem; margin: 0;
  padding: .9rem 1.1rem; background: var(--card); border-radius: .5rem; }
dt { color: var(--soft); }
dd { margin: 0; overflow-wrap: anywhere; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th, td { text-align: left; vertical-align: top; padding: .3rem .8rem .3rem 0; border-bottom: 1px solid
  var(--rule); }
th { color: var(--soft); font-weight: 600; white-space: nowrap; }
td:first-child { min-width: 11rem; }
.fired td { color: var(--bad); font-weight: 600; }
.warned td { color: var(--wait); }
figure { margin: 1.2rem 0 2rem; }
figcaption { font-size: .9rem; margin-bottom: .3rem; }
svg { display: block; width: 100%; height: auto; }
svg.key { display: inline-block; width: 1.5rem; height: .5rem; margin-right: .4rem; vertical-align: middle; }
.legend { list-style: none; display: flex; flex-wrap: wrap; gap: .1rem 1.2rem; margin: .2rem 0 0; padding: 0;
  font-size: .88rem; }
.tick { font-size: 11px; fill: var(--soft); }
.end { text-anchor: end; }
.middle { text-anchor: middle; }
.grid { stroke: var(--rule); }
.zero { stroke: var(--soft); }
.asked { stroke: var(--good); stroke-dasharray: 5 4; }
.event { stroke: var(--soft); stroke-dasharray: 2 3; }
.band { fill: var(--b); opacity: .18; }
path { stroke-width: 1.6; stroke-linejoin: round; }
.effect { stroke: var(--b); }
.limit { stroke: var(--bad); stroke-dasharray: 6 4; }
.arm-a { stroke: var(--a); }
.arm-b { stroke: var(--b); }
.p95 { stroke-dasharray: 6 3; }
.p99 { stroke-dasharray: 1.5 3; }
.line0 { stroke: var(--b); }
.line1 { stroke: var(--a); }
.line2 { stroke: var(--l2); }
.line3 { stroke: var(--l3); }
.line4 { stroke: var(--l4); }
.other { stroke: var(--soft); stroke-width: 1; opacity: .45; }
.band { stroke: none; }
footer { margin-top: 3rem; font-size: .9rem; }
@media print { body { max-width: none; padding: 0; } figure, table { break-inside: avoid; } }
"""
