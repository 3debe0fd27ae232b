// Bring the bytes of the scenes: coarse points first, then fine ones, the mesh and the small pictures.
import { Parts, given } from "./parts.js";

const POLL = 1000, AGAIN = 5000;

/** Load what this page was given, or what the program that serves it has, again whenever that changes. */
export async function load(viewer, changed) {
  const about = given();
  if (about.results) {
    viewer.set(about.results, (number) => new Parts(number, null));
    changed(about, true);
    await fill(viewer, viewer.scenes);
    return;
  }
  let version = -1, isFirst = true, stage = "";
  for (;;) {
    const now = await state(version);
    if (now === null) {
      viewer.say("The program that served this page does not answer; it may have ended.");
      viewer.loading = false;
      viewer.mark();
      stage = null; // to be said again
      await pause(AGAIN);
      continue;
    }
    if (now.version !== version && now.results?.length) {
      version = now.version;
      viewer.set(now.results, (number) => new Parts(number, `parts/${version}/${number}`));
      changed(now, isFirst);
      isFirst = false;
      const scenes = viewer.scenes;
      if (!(await fill(viewer, scenes))) {
        version = -1; // what is there now comes whole
        await pause(POLL);
        continue;
      }
      if (now.isDone) return;
    } else if (now.stage !== stage) viewer.say(now.stage);
    stage = now.stage;
    await pause(POLL);
  }
}

const pause = (milliseconds) => new Promise((done) => setTimeout(done, milliseconds));

async function state(version) {
  try {
    const answer = await fetch(`state?${version}`);
    return answer.ok ? await answer.json() : null;
  } catch {
    return null;
  }
}

/** Bring all parts of the scenes that a viewer shows; false if one is gone, because newer scenes have replaced them. */
export async function fill(viewer, scenes) {
  viewer.loading = true;
  const most = Math.max(...scenes.map((scene) => scene.header.points.levels));
  for (let level = 0; level < most; level++)
    for (const scene of scenes) {
      if (level >= scene.header.points.levels) continue;
      const bytes = await scene.parts.unpacked(`points-${level}`);
      if (!bytes) return false;
      scene.addLevel(bytes);
      viewer.redraw();
      await new Promise((done) => setTimeout(done));
    }
  for (const scene of scenes) {
    const bytes = scene.header.mesh && (await scene.parts.unpacked("mesh"));
    if (scene.header.mesh && !bytes) return false;
    if (bytes) scene.addMesh(bytes);
    await thumbs(viewer, scene);
  }
  viewer.loading = false;
  viewer.redraw();
  return true;
}

async function thumbs(viewer, scene) {
  for await (const [view, bitmap] of scene.parts.thumbs()) {
    const camera = scene.cameras[view];
    camera.thumb = viewer.around.upload(bitmap);
    camera.bitmap = bitmap;
    viewer.dispatchEvent(new CustomEvent("thumb", { detail: camera }));
    if (view % 16 === 0) viewer.redraw();
  }
}
