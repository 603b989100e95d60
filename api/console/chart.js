/** A chart of lines or bars over time (uPlot), in the page's colours, as wide as its place. */
import { html } from './base.js';
import { useEffect, useRef, useState } from './vendor/hooks.js';
import uPlot from './vendor/uplot.js';

const STROKES = ['--accent', '--second', '--third', '--fourth', '--fifth'];
const HEIGHT = 220;

/** Whether it is night: a chart's colours do not follow by themselves. */
function useDark() {
  const [dark, set] = useState(() => matchMedia('(prefers-color-scheme: dark)').matches);
  useEffect(() => {
    const media = matchMedia('(prefers-color-scheme: dark)');
    const changed = () => set(media.matches);
    media.addEventListener('change', changed);
    return () => media.removeEventListener('change', changed);
  }, []);
  return dark;
}

/** `x` are seconds, of which the last `seconds` show, or all; `lines` are pairs of a name and its values.
 *  What it shows is in a table or in tiles, too. */
export function Chart({ label, x, lines, bars = false, points = false, seconds = 0 }) {
  const dark = useDark();
  const place = useRef(null);
  const plot = useRef(null);
  const names = lines.map(([name]) => name).join('\n');
  useEffect(() => {
    const style = getComputedStyle(document.documentElement);
    const colour = (name) => style.getPropertyValue(name).trim();
    const axis = { stroke: colour('--soft'), grid: { stroke: colour('--line'), width: 1 }, ticks: { show: false } };
    const series = names.split('\n').map((name, i) => ({
      label: name, stroke: colour(STROKES[i % STROKES.length]), width: 2, points: { show: points },
      ...(bars && { paths: uPlot.paths.bars({ size: [0.7, 40] }), fill: colour(STROKES[i % STROKES.length]) }),
    }));
    const range = (u, low, high) => [0, Math.max(1, high * 1.1)];
    plot.current = new uPlot({ width: place.current.clientWidth, height: HEIGHT, series: [{}, ...series],
      legend: { show: series.length > 1, live: false }, cursor: { drag: { x: false, y: false } },
      axes: [axis, { ...axis, size: 64 }], scales: { y: { range }, x: seconds ? { range: (u, low, high) => [high - seconds, high] } : {} } }, null, place.current);
    const resized = new ResizeObserver(([{ contentRect }]) => plot.current?.setSize({ width: contentRect.width, height: HEIGHT }));
    resized.observe(place.current);
    return () => { resized.disconnect(); plot.current.destroy(); plot.current = null; };
  }, [names, bars, points, dark, seconds]);
  useEffect(() => plot.current.setData([x, ...lines.map(([, values]) => values)]), [x, lines, names, bars, points, dark, seconds]);
  return html`<div class="chart" role="img" aria-label=${label} ref=${place}></div>`;
}
