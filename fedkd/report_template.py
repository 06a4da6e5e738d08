"""The report's page: Jinja2, styles included. A string, because Flower's bundles drop files of unknown suffixes."""

_STYLE = """
:root {
  color-scheme: light dark;
  --page: #f7f7f5; --card: #ffffff; --ink: #1c1f24; --muted: #5f6673; --rule: #e2e3e0; --bad: #b42318;
  --s1: #2563c9; --s2: #c2620a; --s3: #0d8a64; --s4: #8a3fc4; --s5: #b8336a; --s6: #5c6b7a;
}
@media (prefers-color-scheme: dark) {
  :root {
    --page: #14161a; --card: #1c1f25; --ink: #e8e9ec; --muted: #a0a7b4; --rule: #343943; --bad: #ff8a7a;
    --s1: #7aaaf7; --s2: #f2a65a; --s3: #55c9a2; --s4: #c79bf2; --s5: #f086ae; --s6: #a7b4c2;
  }
}
* { box-sizing: border-box; }
body {
  margin: 0 auto; padding: 2rem 1rem 4rem; max-width: 72rem; background: var(--page); color: var(--ink);
  font: 16px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", sans-serif;
  font-variant-numeric: tabular-nums;
}
h1 { margin: 0; font-size: 1.75rem; line-height: 1.2; letter-spacing: -0.01em; overflow-wrap: anywhere; }
h2 { margin: 2.5rem 0 .75rem; font-size: 1.15rem; }
h3 { margin: 0; font-size: .95rem; }
p { margin: .25rem 0 .6rem; }
h2:has(+ p) { margin-bottom: 0; }
figcaption p, header p { margin: .1rem 0; }
.muted, figcaption p, th { color: var(--muted); }
.card { background: var(--card); border: 1px solid var(--rule); border-radius: 10px; }
code, pre { font-family: ui-monospace, SFMono-Regular, Menlo, Consolas, monospace; font-size: .85rem; }
.cards { display: grid; grid-template-columns: repeat(2, 1fr); gap: .75rem; margin: 1.5rem 0; }
@media (min-width: 48rem) { .cards { grid-template-columns: repeat(4, 1fr); } }
.cards div { padding: .8rem 1rem; }
.cards dt { color: var(--muted); font-size: .85rem; }
.cards dd { margin: 0; font-size: 1.5rem; font-weight: 600; line-height: 1.35; }
.cards small { display: block; color: var(--muted); font-size: .8rem; }
.plots { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 26rem), 1fr)); gap: .75rem; }
figure { display: flex; flex-direction: column; margin: 0; padding: 1rem; min-width: 0; }
figure svg { display: block; width: 100%; height: auto; margin-top: auto; padding-top: .5rem; }
figure.wide { max-width: 40rem; margin-top: .75rem; }
figcaption p { font-size: .85rem; }
.legend { display: flex; flex-wrap: wrap; gap: .15rem 1rem; margin: .4rem 0 0; padding: 0; list-style: none; }
.legend li { display: flex; align-items: center; gap: .4rem; font-size: .85rem; }
.legend i { width: 1.3rem; border-top: 3px solid; }
.legend i.dashed { border-top-style: dashed; }
.scroll { overflow: auto; max-height: 34rem; }
table { width: 100%; border-collapse: collapse; font-size: .9rem; }
th, td { padding: .45rem .8rem; border-bottom: 1px solid var(--rule); text-align: right; white-space: nowrap; }
tbody tr:last-child > * { border-bottom: 0; }
thead th { position: sticky; top: 0; background: var(--card); font-weight: 600; }
th.text, td.text, tbody th { text-align: left; }
tbody th { color: inherit; font-weight: 600; }
td.reason { white-space: normal; overflow-wrap: anywhere; min-width: 16rem; color: var(--bad); }
td.value { white-space: normal; overflow-wrap: anywhere; text-align: left; }
td.bar { background: linear-gradient(color-mix(in srgb, var(--s1) 22%, transparent) 0 0) left center no-repeat; }
details { margin: .75rem 0; }
summary { padding: .8rem 1rem; cursor: pointer; font-weight: 600; }
pre { margin: 0; padding: 0 1rem 1rem; overflow-x: auto; }
footer { margin-top: 3rem; font-size: .85rem; overflow-wrap: anywhere; }
@media print { body { max-width: none; } .scroll { max-height: none; } }
"""

_MACROS = """
{%- macro metric_heads() %}
<th scope="col">accuracy</th><th scope="col">NLL, nats</th><th scope="col">ECE</th>
<th scope="col">Brier</th><th scope="col">entropy, nats</th>
{%- endmacro %}
{%- macro metric_cells(row) %}
<td>{{ row.nll|number }}</td><td>{{ row.ece|percent }}</td>
<td>{{ row.brier|number }}</td><td>{{ row.entropy|number }}</td>
{%- endmacro %}
{%- macro share(value) %}
<td class="bar" style="background-size: {{ value|width }} 1.5em">{{ value|percent }}</td>
{%- endmacro %}
{%- macro figure(plot, wide=false) %}
<figure class="card{{ ' wide' if wide }}">
<figcaption><h3>{{ plot.title }}</h3><p>{{ plot.note }}</p>
{%- if plot.legend %}
<ul class="legend">
{%- for key in plot.legend %}
<li><i{{ ' class=dashed' if key.dashed }} style="border-color: {{ key.colour }}"></i>{{ key.label }}</li>
{%- endfor %}
</ul>
{%- endif %}
</figcaption>
{{ plot.svg|safe }}
</figure>
{%- endmacro %}
"""

_RESULTS = """
<dl class="cards">
{%- for card in cards %}
<div class="card"><dt>{{ card.label }}</dt><dd>{{ card.value }}</dd><small>{{ card.note }}</small></div>
{%- endfor %}
</dl>

<h2>Last round</h2>
<div class="card scroll"><table>
<thead><tr><th class="text" scope="col">who, on which samples</th>{{ metric_heads() }}
<th scope="col">accuracy, worst tenth</th></tr></thead>
<tbody>
{%- for label, row in last %}
<tr><th scope="row">{{ label }}</th>{{ share(row.accuracy) }}{{ metric_cells(row) }}
<td>{{ row.get("accuracy_worst10")|percent }}</td></tr>
{%- else %}
<tr><td class="text muted" colspan="7">The last round was not evaluated.</td></tr>
{%- endfor %}
</tbody></table></div>

{%- if gains %}
<h2>Views</h2>
<p class="muted">Mean accuracy of the clients that hold a view, on the global test set: alone, for at least as many
gradient steps, and with the strategy. Lacking: their training samples without the view. Gain in percentage points.</p>
<div class="card scroll"><table>
<thead><tr><th class="text" scope="col">view</th><th scope="col">clients</th><th scope="col">lacking</th>
<th scope="col">alone</th><th scope="col">with {{ summary.strategy }}</th><th scope="col">gain</th></tr></thead>
<tbody>
{%- for row in gains %}
<tr><th scope="row">{{ row.view }}</th><td>{{ row.clients }}</td><td>{{ row.missing }}</td>
<td>{{ row.alone|percent }}</td><td>{{ row.together|percent }}</td><td>{{ row.gain|points }}</td></tr>
{%- endfor %}
</tbody></table></div>
{%- endif %}

<h2>Over the rounds</h2>
{%- if evaluated < 2 %}
<p class="muted">{{ "Only one" if evaluated else "No" }} round was evaluated: there are no curves of the measures.</p>
{%- endif %}
<div class="plots">
{%- for plot in plots %}{{ figure(plot) }}{% endfor %}
</div>
"""

_CLIENTS = """
{%- if failures %}
<h2>Failed clients</h2>
<p class="muted">A failed client is left out of its round; the others go on.</p>
<div class="card scroll"><table>
<thead><tr><th scope="col">round</th><th class="text" scope="col">client</th>
<th class="text" scope="col">reason</th></tr></thead>
<tbody>
{%- for failure in failures %}
<tr><td>{{ failure.round }}</td><td class="text">{{ failure.client }}</td>
<td class="text reason">{{ failure.reason }}</td></tr>
{%- endfor %}
</tbody></table></div>
{%- endif %}

{%- if clients %}
<h2>Clients</h2>
<p class="muted">At the last evaluation, on the global test set; last column: on the client's own test split. Lacking:
training samples without the view, which are not among its samples.</p>
<div class="card scroll"><table>
<thead><tr><th class="text" scope="col">client</th><th class="text" scope="col">architecture</th>
<th class="text" scope="col">view</th><th scope="col">samples</th><th scope="col">lacking</th>{{ metric_heads() }}
<th scope="col">own split</th></tr></thead>
<tbody>
{%- for row in clients %}
<tr><th scope="row">{{ row.client }}</th><td class="text">{{ row.architecture }}</td>
<td class="text">{{ row.view }}</td><td>{{ row.num_samples }}</td><td>{{ row.missing.get(row.view, 0) }}</td>
{{ share(row.global.accuracy) }}
{{ metric_cells(row.global) }}
<td>{{ (row.local or {}).get("accuracy")|percent }}</td></tr>
{%- endfor %}
</tbody></table></div>
{{ figure(labels, wide=true) }}
{%- endif %}
"""

_BACKGROUND = """
<h2>Background</h2>
<details class="card"><summary>Rounds</summary><div class="scroll"><table>
<thead><tr><th scope="col">round</th><th scope="col">time</th><th scope="col">participants</th>
<th scope="col">failed</th><th scope="col">sent up</th><th scope="col">sent down</th>
<th class="text" scope="col">state digest</th></tr></thead>
<tbody>
{%- for row in rounds %}
<tr><td>{{ row.round }}</td><td>{{ row.seconds|duration }}</td><td>{{ row.participants|count_of }}</td>
<td>{{ row.failed|count_of }}</td>
<td>{{ row.bytes_up.values()|sum|size }}</td><td>{{ row.bytes_down.values()|sum|size }}</td>
<td class="text"><code>{{ row.digest[:12] }}</code></td></tr>
{%- endfor %}
</tbody></table></div></details>
<details class="card"><summary>Settings</summary><pre>{{ settings }}</pre></details>
<details class="card"><summary>Environment and manifest</summary><div class="scroll"><table><tbody>
{%- for key, value in manifest %}
<tr><th scope="row">{{ key }}</th><td class="value">{{ value }}</td></tr>
{%- endfor %}
</tbody></table></div></details>
<footer class="muted">State digest <code>{{ summary.digest }}</code></footer>
"""

TEMPLATE = f"""{_MACROS}<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'; img-src data:">
<title>{{{{ summary.strategy }}}} · {{{{ name }}}}</title>
<style>{_STYLE}</style>
</head>
<body>
<header>
<h1>{{{{ name }}}}</h1>
<p class="muted">{{{{ summary.strategy }}}} · {{{{ summary.rounds }}}} rounds · seed {{{{ summary.seed }}}}</p>
</header>
<main>
{_RESULTS}{_CLIENTS}{_BACKGROUND}
</main>
</body>
</html>
"""
