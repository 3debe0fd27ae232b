// Small helpers around WebGL 2.

export function program(gl, vertex, fragment) {
  const made = gl.createProgram();
  for (const [kind, text] of [[gl.VERTEX_SHADER, vertex], [gl.FRAGMENT_SHADER, fragment]]) {
    const shader = gl.createShader(kind);
    gl.shaderSource(shader, text);
    gl.compileShader(shader);
    gl.attachShader(made, shader);
  }
  gl.linkProgram(made);
  if (!gl.getProgramParameter(made, gl.LINK_STATUS) && !gl.isContextLost()) {
    const said = gl.getAttachedShaders(made).map((shader) => gl.getShaderInfoLog(shader)).join("\n");
    throw new Error(`${gl.getProgramInfoLog(made)}\n${said}`);
  }
  const uniforms = {};
  for (let i = 0; i < gl.getProgramParameter(made, gl.ACTIVE_UNIFORMS); i++) {
    const { name } = gl.getActiveUniform(made, i);
    uniforms[name] = gl.getUniformLocation(made, name);
  }
  return { made, u: uniforms };
}

export function texture(gl, format, width, height, bytes, filter, kind = gl.UNSIGNED_BYTE, inside = gl.RGBA8) {
  const made = gl.createTexture();
  gl.bindTexture(gl.TEXTURE_2D, made);
  gl.texImage2D(gl.TEXTURE_2D, 0, inside, width, height, 0, format, kind, bytes);
  for (const name of [gl.TEXTURE_MIN_FILTER, gl.TEXTURE_MAG_FILTER]) gl.texParameteri(gl.TEXTURE_2D, name, filter);
  for (const name of [gl.TEXTURE_WRAP_S, gl.TEXTURE_WRAP_T]) gl.texParameteri(gl.TEXTURE_2D, name, gl.CLAMP_TO_EDGE);
  return made;
}

export function pictureTexture(gl, bitmap) {
  const made = gl.createTexture();
  gl.bindTexture(gl.TEXTURE_2D, made);
  gl.texImage2D(gl.TEXTURE_2D, 0, gl.RGBA8, gl.RGBA, gl.UNSIGNED_BYTE, bitmap);
  gl.generateMipmap(gl.TEXTURE_2D);
  gl.texParameteri(gl.TEXTURE_2D, gl.TEXTURE_MIN_FILTER, gl.LINEAR_MIPMAP_LINEAR);
  for (const name of [gl.TEXTURE_WRAP_S, gl.TEXTURE_WRAP_T]) gl.texParameteri(gl.TEXTURE_2D, name, gl.CLAMP_TO_EDGE);
  return made;
}

/** A picture that is drawn into: several samples a pixel, and the textures that they become. */
export class Target {
  constructor(gl, width, height, samples) {
    Object.assign(this, { gl, width, height });
    this.rgb = texture(gl, gl.RGBA, width, height, null, gl.NEAREST);
    this.depth = texture(gl, gl.DEPTH_COMPONENT, width, height, null, gl.NEAREST, gl.UNSIGNED_INT, gl.DEPTH_COMPONENT24);
    this.plain = gl.createFramebuffer();
    gl.bindFramebuffer(gl.FRAMEBUFFER, this.plain);
    gl.framebufferTexture2D(gl.FRAMEBUFFER, gl.COLOR_ATTACHMENT0, gl.TEXTURE_2D, this.rgb, 0);
    gl.framebufferTexture2D(gl.FRAMEBUFFER, gl.DEPTH_ATTACHMENT, gl.TEXTURE_2D, this.depth, 0);
    this.drawn = gl.createFramebuffer();
    gl.bindFramebuffer(gl.FRAMEBUFFER, this.drawn);
    this.buffers = [[gl.COLOR_ATTACHMENT0, gl.RGBA8], [gl.DEPTH_ATTACHMENT, gl.DEPTH_COMPONENT24]].map(([at, format]) => {
      const buffer = gl.createRenderbuffer();
      gl.bindRenderbuffer(gl.RENDERBUFFER, buffer);
      gl.renderbufferStorageMultisample(gl.RENDERBUFFER, samples > 1 ? samples : 0, format, width, height);
      gl.framebufferRenderbuffer(gl.FRAMEBUFFER, at, gl.RENDERBUFFER, buffer);
      return buffer;
    });
  }

  begin() {
    this.gl.bindFramebuffer(this.gl.FRAMEBUFFER, this.drawn);
  }

  /** Make the textures of what was drawn. */
  resolve() {
    const gl = this.gl, size = [0, 0, this.width, this.height];
    gl.bindFramebuffer(gl.READ_FRAMEBUFFER, this.drawn);
    gl.bindFramebuffer(gl.DRAW_FRAMEBUFFER, this.plain);
    gl.blitFramebuffer(...size, ...size, gl.COLOR_BUFFER_BIT | gl.DEPTH_BUFFER_BIT, gl.NEAREST);
    gl.bindFramebuffer(gl.FRAMEBUFFER, null);
  }

  free() {
    const gl = this.gl;
    gl.deleteTexture(this.rgb);
    gl.deleteTexture(this.depth);
    gl.deleteFramebuffer(this.plain);
    gl.deleteFramebuffer(this.drawn);
    this.buffers.forEach((buffer) => gl.deleteRenderbuffer(buffer));
  }
}
