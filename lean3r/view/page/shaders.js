// What the graphics processor runs.

const HEAD = "#version 300 es\nprecision highp float;\nprecision highp int;\n";

export const POINTS_VS = `${HEAD}
layout(location = 0) in vec3 a_place;
layout(location = 1) in vec2 a_rank_size;
layout(location = 2) in vec4 a_rgb_nx;
layout(location = 3) in uint a_view;
layout(location = 4) in float a_ny;
uniform mat4 u_clip;
uniform vec3 u_low, u_side, u_eye, u_trim_low, u_trim_high, u_tint;
uniform vec2 u_spacing, u_size_limits;
uniform float u_pixels, u_least;
uniform int u_mode, u_cull;
uniform sampler2D u_views, u_palette;
out vec3 v_rgb;
flat out float v_size;

vec3 unfolded(vec2 flat_place) {
  vec3 n = vec3(flat_place, 1.0 - abs(flat_place.x) - abs(flat_place.y));
  float back = max(-n.z, 0.0);
  n.xy += vec2(n.x >= 0.0 ? -back : back, n.y >= 0.0 ? -back : back);
  return n;
}

void main() {
  vec3 place = u_low + a_place * u_side;
  vec4 at = u_clip * vec4(a_place, 1.0);
  bool hidden = a_rank_size.x < u_least || any(lessThan(place, u_trim_low)) || any(greaterThan(place, u_trim_high));
  if (u_cull == 1 && a_ny > 0.0) {
    vec3 normal = unfolded((vec2(a_rgb_nx.w, a_ny) * 255.0 - 128.0) / 126.0);
    hidden = hidden || dot(normal, u_eye - place) < 0.0;
  }
  v_rgb = a_rgb_nx.rgb;
  if (u_mode == 1) v_rgb = texture(u_palette, vec2(a_rank_size.x, 0.5)).rgb;
  float light = dot(a_rgb_nx.rgb, vec3(0.3, 0.59, 0.11)); // so that shapes stay visible
  if (u_mode == 2) v_rgb = (0.5 + 0.6 * light) * (a_view == 65535u ? vec3(0.55)
    : texelFetch(u_views, ivec2(int(a_view) & 1023, int(a_view) >> 10), 0).rgb);
  if (u_mode == 3) v_rgb = u_tint * (0.35 + 0.65 * light);
  float size = exp2(mix(u_spacing.x, u_spacing.y, a_rank_size.y)) * u_pixels / at.w;
  v_size = clamp(size, u_size_limits.x, u_size_limits.y);
  gl_PointSize = v_size + 1.0;
  gl_Position = hidden ? vec4(2.0, 2.0, 2.0, 1.0) : at;
}`;

export const POINTS_FS = `${HEAD}
in vec3 v_rgb;
flat in float v_size;
uniform bool u_smooth;
out vec4 color;
void main() {
  float beyond = length(gl_PointCoord - 0.5) * (v_size + 1.0) - v_size * 0.5;
  if (beyond > (u_smooth ? 0.5 : 0.0) && v_size > 2.0) discard;
  color = vec4(v_rgb, v_size < 2.5 ? 1.0 : clamp(0.5 - beyond, 0.0, 1.0));
}`;

export const MESH_VS = `${HEAD}
layout(location = 0) in vec3 a_place;
layout(location = 1) in vec3 a_rgb;
uniform mat4 u_clip;
out vec3 v_rgb, v_place;
void main() {
  v_rgb = a_rgb;
  v_place = a_place;
  gl_Position = u_clip * vec4(a_place, 1.0);
}`;

export const MESH_FS = `${HEAD}
in vec3 v_rgb, v_place;
uniform vec3 u_trim_low, u_trim_high, u_eye, u_tint;
uniform int u_mode, u_cull;
out vec4 color;
void main() {
  if (any(lessThan(v_place, u_trim_low)) || any(greaterThan(v_place, u_trim_high))) discard;
  if (u_cull == 1 && !gl_FrontFacing) discard;
  vec3 normal = normalize(cross(dFdx(v_place), dFdy(v_place)));
  float light = 0.55 + 0.45 * abs(dot(normal, normalize(u_eye - v_place)));
  vec3 rgb = u_mode == 4 ? vec3(0.82, 0.84, 0.88) * light : v_rgb;
  if (u_mode == 3) rgb = u_tint * (0.35 + 0.65 * dot(v_rgb, vec3(0.3, 0.59, 0.11)));
  color = vec4(rgb, 1.0);
}`;

export const WHOLE_VS = `${HEAD}
out vec2 v_at;
void main() {
  v_at = vec2(gl_VertexID & 1, gl_VertexID >> 1) * 2.0;
  gl_Position = vec4(v_at * 2.0 - 1.0, 1.0, 1.0);
}`;

export const SKY_FS = `${HEAD}
in vec2 v_at;
uniform vec3 u_top, u_bottom;
out vec4 color;
void main() { color = vec4(mix(u_bottom, u_top, v_at.y), 1.0); }`;

// Eye-dome lighting: a pixel is darker if its neighbours are nearer (Boucheny 2009).
export const SHOW_FS = `${HEAD}
in vec2 v_at;
uniform sampler2D u_rgb;
uniform highp sampler2D u_depth;
uniform vec2 u_texel, u_range;
uniform float u_shade;
out vec4 color;
float far_of(vec2 at) {
  float d = texture(u_depth, at).r;
  return d >= 1.0 ? 40.0 : log2(u_range.x * u_range.y / (u_range.y - d * (u_range.y - u_range.x)));
}
void main() {
  vec3 rgb = texture(u_rgb, v_at).rgb;
  float depth = texture(u_depth, v_at).r;
  if (u_shade > 0.0 && depth < 1.0) {
    float mine = far_of(v_at), sum = 0.0;
    for (int i = 0; i < 8; i++) {
      float angle = float(i) * 0.7853982;
      sum += clamp(mine - far_of(v_at + vec2(cos(angle), sin(angle)) * u_texel), 0.0, 0.2);
    }
    rgb *= exp(-u_shade * sum);
  }
  color = vec4(rgb, 1.0);
  gl_FragDepth = depth;
}`;

// Depth as three bytes, to be read back.
export const PROBE_FS = `${HEAD}
uniform highp sampler2D u_depth;
uniform ivec2 u_corner;
out vec4 color;
void main() {
  uint d = uint(texelFetch(u_depth, u_corner + ivec2(gl_FragCoord.xy), 0).r * 16777215.0);
  color = vec4(float(d >> 16), float((d >> 8) & 255u), float(d & 255u), 255.0) / 255.0;
}`;

export const LINES_VS = `${HEAD}
layout(location = 0) in vec3 a_from;
layout(location = 1) in vec3 a_to;
layout(location = 2) in vec4 a_rgba;
uniform mat4 u_clip;
uniform vec2 u_pixels;
uniform float u_width, u_nearer;
out vec4 v_rgba;
void main() {
  vec4 a = u_clip * vec4(a_from, 1.0), b = u_clip * vec4(a_to, 1.0);
  if (a.w < 1e-4 && b.w < 1e-4) { gl_Position = vec4(2.0, 2.0, 2.0, 1.0); return; }
  if (a.w < 1e-4) a = mix(a, b, (1e-4 - a.w) / (b.w - a.w));
  if (b.w < 1e-4) b = mix(b, a, (1e-4 - b.w) / (a.w - b.w));
  vec2 along = (b.xy / b.w - a.xy / a.w) * u_pixels;
  along = length(along) > 1e-6 ? normalize(along) : vec2(1.0, 0.0);
  vec4 at = (gl_VertexID & 1) == 0 ? a : b;
  float side = (gl_VertexID >> 1) == 0 ? -1.0 : 1.0;
  at.xy += vec2(-along.y, along.x) * side * u_width / u_pixels * at.w;
  at.z -= u_nearer * at.w;
  v_rgba = a_rgba;
  gl_Position = at;
}`;

export const LINES_FS = `${HEAD}
in vec4 v_rgba;
out vec4 color;
void main() { color = v_rgba; }`;

export const PICTURE_VS = `${HEAD}
layout(location = 0) in vec3 a_ray;
layout(location = 1) in vec2 a_at;
uniform mat4 u_clip;
uniform vec3 u_centre;
uniform float u_reach;
out vec2 v_at;
void main() {
  v_at = a_at;
  gl_Position = u_clip * vec4(u_centre + a_ray * u_reach, 1.0);
}`;

export const PICTURE_FS = `${HEAD}
in vec2 v_at;
uniform sampler2D u_rgb;
uniform float u_opacity;
out vec4 color;
void main() { color = vec4(texture(u_rgb, v_at).rgb, u_opacity); }`;

export const GRID_VS = `${HEAD}
uniform mat4 u_clip;
uniform float u_height, u_reach;
out vec2 v_at;
void main() {
  v_at = (vec2(gl_VertexID & 1, gl_VertexID >> 1) * 2.0 - 1.0) * u_reach;
  gl_Position = u_clip * vec4(v_at.x, u_height, v_at.y, 1.0);
}`;

export const GRID_FS = `${HEAD}
in vec2 v_at;
uniform float u_step, u_reach;
uniform vec3 u_rgb;
out vec4 color;
float lines(vec2 at, float width) {
  vec2 wide = fwidth(at), near = abs(fract(at - 0.5) - 0.5);
  vec2 on = 1.0 - smoothstep(wide * width, wide * (width + 1.0), near);
  return max(on.x, on.y) * (1.0 - smoothstep(0.2, 0.6, max(wide.x, wide.y)));
}
void main() {
  float fade = 1.0 - smoothstep(0.3, 1.0, length(v_at) / u_reach);
  float on = max(0.16 * lines(v_at / u_step, 0.15), 0.3 * lines(v_at / (u_step * 5.0), 0.4));
  color = vec4(u_rgb, on * fade);
}`;
