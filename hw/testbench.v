// Self-checking test of terrazzo_top: loads a program, runs its setup and every frame from a behavioural AXI4
// memory, and compares the output buffers with what the integer graph gives. Prints PASS, or FAIL and stops with an
// error. Plain Verilog; README.md has the commands for Icarus Verilog and Verilator.
`timescale 1ns / 1ps

module testbench;

  // Written for one accelerator and program by terrazzo:
  //PARAMETERS

  localparam BUS_BITS = BUS_BYTES * 8;
  localparam STATUS_ERROR = 2, STATUS_LOADED = 4, STATUS_INTERRUPT = 8;
  localparam CONTROL_START = 1, CONTROL_LOAD = 2, CONTROL_ACKNOWLEDGE = 8;

  reg clk = 0, rst = 1;
  integer cycle = 0;
  always #5 clk = ~clk;
  always @(posedge clk) cycle <= cycle + 1;

  // ---- the device ----
  reg  [7:0]  awaddr = 0, araddr = 0;
  reg  [31:0] wdata = 0;
  reg         awvalid = 0, wvalid = 0, bready = 0, arvalid = 0, rready = 0;
  wire        awready, wready, bvalid, arready, rvalid, irq;
  wire [1:0]  bresp, rresp;
  wire [31:0] rdata;

  // A bit, or as many as the signal has, for each AXI4 port of the device.
  wire [PORTS*32-1:0] m_awaddr, m_araddr;
  wire [PORTS*8-1:0]  m_awlen, m_arlen;
  wire [PORTS-1:0]    m_awvalid, m_wvalid, m_wlast, m_bready, m_arvalid, m_rready;
  wire [PORTS-1:0]    m_awready, m_wready, m_arready;
  wire [PORTS*BUS_BITS-1:0]  m_wdata;
  wire [PORTS*BUS_BYTES-1:0] m_wstrb;
  reg  [PORTS-1:0]           m_bvalid = 0, m_rvalid = 0, m_rlast = 0;
  reg  [PORTS*BUS_BITS-1:0]  m_rdata = 0;

  terrazzo_top dut (
    .clk(clk), .rst(rst), .irq(irq),
    .s_axil_awaddr(awaddr), .s_axil_awprot(3'b0), .s_axil_awvalid(awvalid), .s_axil_awready(awready),
    .s_axil_wdata(wdata), .s_axil_wstrb(4'b1111), .s_axil_wvalid(wvalid), .s_axil_wready(wready),
    .s_axil_bresp(bresp), .s_axil_bvalid(bvalid), .s_axil_bready(bready),
    .s_axil_araddr(araddr), .s_axil_arprot(3'b0), .s_axil_arvalid(arvalid), .s_axil_arready(arready),
    .s_axil_rdata(rdata), .s_axil_rresp(rresp), .s_axil_rvalid(rvalid), .s_axil_rready(rready),
    //MASTERS
  );

  // ---- memory: one burst at a time on each side of each port, LATENCY cycles each ----
  reg [BUS_BITS-1:0] memory [0:MEMORY_WORDS-1];

  reg  [PORTS-1:0] reading = 0, writing = 0, responding = 0;
  reg  [31:0] read_word [0:PORTS-1], write_word [0:PORTS-1];
  integer     read_left [0:PORTS-1], read_wait [0:PORTS-1], response_wait [0:PORTS-1];
  integer     i, p;

  assign m_arready = ~reading;
  assign m_awready = ~writing & ~responding;
  assign m_wready  = writing;

  always @(posedge clk)
    for (p = 0; p < PORTS; p = p + 1) begin
      if (m_arvalid[p] && m_arready[p]) begin
        reading[p]   <= 1;
        read_word[p] <= m_araddr[p*32 +: 32] / BUS_BYTES;
        read_left[p] <= m_arlen[p*8 +: 8] + 1;
        read_wait[p] <= LATENCY;
      end else if (reading[p]) begin
        if (read_wait[p] != 0) read_wait[p] <= read_wait[p] - 1;
        else if (!m_rvalid[p] || m_rready[p]) begin
          m_rvalid[p] <= read_left[p] != 0;
          m_rlast[p]  <= read_left[p] == 1;
          m_rdata[p*BUS_BITS +: BUS_BITS] <= memory[read_word[p]];
          if (read_left[p] == 0) reading[p] <= 0;
          else begin
            read_word[p] <= read_word[p] + 1;
            read_left[p] <= read_left[p] - 1;
          end
        end
      end

      if (m_awvalid[p] && m_awready[p]) begin
        writing[p]    <= 1;
        write_word[p] <= m_awaddr[p*32 +: 32] / BUS_BYTES;
      end
      if (m_wvalid[p] && m_wready[p]) begin
        for (i = 0; i < BUS_BYTES; i = i + 1)
          if (m_wstrb[p*BUS_BYTES + i]) memory[write_word[p]][i*8 +: 8] <= m_wdata[(p*BUS_BYTES + i)*8 +: 8];
        write_word[p] <= write_word[p] + 1;
        if (m_wlast[p]) begin
          writing[p]       <= 0;
          responding[p]    <= 1;
          response_wait[p] <= LATENCY;
        end
      end
      if (responding[p] && !m_bvalid[p]) begin
        if (response_wait[p] != 0) response_wait[p] <= response_wait[p] - 1;
        else m_bvalid[p] <= 1;
      end
      if (m_bvalid[p] && m_bready[p]) begin
        m_bvalid[p]   <= 0;
        responding[p] <= 0;
      end
    end

  // ---- host: drives on falling edges, samples on rising ones ----
  reg [31:0] value;
  reg took_address, took_data, took_response;

  task write_register(input [7:0] address, input [31:0] data);
    begin
      @(negedge clk);
      awaddr = address; wdata = data; awvalid = 1; wvalid = 1; bready = 1;
      while (bready) begin
        @(posedge clk);
        took_address = awvalid && awready;
        took_data = wvalid && wready;
        took_response = bvalid;
        @(negedge clk);
        if (took_address) awvalid = 0;
        if (took_data) wvalid = 0;
        if (took_response) bready = 0;
      end
    end
  endtask

  task read_register(input [7:0] address);
    begin
      @(negedge clk);
      araddr = address; arvalid = 1; rready = 1;
      while (rready) begin
        @(posedge clk);
        took_address = arvalid && arready;
        took_response = rvalid;
        value = rdata;
        @(negedge clk);
        if (took_address) arvalid = 0;
        if (took_response) rready = 0;
      end
    end
  endtask

  task fail(input [8*48-1:0] reason, input integer where);
    begin
      $display("FAIL: %0s, %0d, in cycle %0d", reason, where, cycle);
      $fatal(1, "FAIL");
    end
  endtask

  task check_status;
    begin
      read_register(STATUS);
      if ((value & STATUS_ERROR) != 0) begin
        read_register(CAUSE);
        fail("error with this cause in its register", value);
      end
    end
  endtask

  integer started;
  task run(input [31:0] entry);
    begin
      write_register(ENTRY, entry);
      write_register(CONTROL, CONTROL_START);
      started = cycle;
      while (!irq) begin
        @(posedge clk);
        if (cycle - started > MAX_CYCLES) fail("no end within this many cycles", MAX_CYCLES);
      end
      write_register(CONTROL, CONTROL_ACKNOWLEDGE);
      check_status;
    end
  endtask

  // ---- test ----
  reg [BUS_BYTES+BUS_BITS-1:0] expected [0:FRAMES*OUTPUT_WORDS-1]; // a bit per byte that counts, then the bytes
  reg [BUS_BYTES+BUS_BITS-1:0] want;
  reg [BUS_BITS-1:0] got;
  integer frame, word, lane, wrong;

  initial begin
    $readmemh("memory.hex", memory);
    $readmemh("expected.hex", expected);
    repeat (4) @(negedge clk);
    rst = 0;

    read_register(IDENTITY);
    if (value !== IDENTITY_VALUE) fail("identity register must not be", value);
    write_register(IRQ_ENABLE, 1);
    write_register(PROGRAM, PROGRAM_ADDRESS);
    write_register(WEIGHTS_BASE, WEIGHTS_ADDRESS);
    write_register(WEIGHTS_LIMIT, WEIGHTS_BYTES);
    write_register(SCRATCH_BASE, SCRATCH_ADDRESS);
    write_register(SCRATCH_LIMIT, SCRATCH_BYTES);
    write_register(INPUT_LIMIT, INPUT_BYTES);
    write_register(OUTPUT_LIMIT, OUTPUT_BYTES);
    write_register(CONTROL, CONTROL_LOAD);
    value = 0;
    while ((value & (STATUS_LOADED | STATUS_ERROR)) == 0) begin
      read_register(STATUS);
      if (cycle > MAX_CYCLES) fail("program not loaded within this many cycles", MAX_CYCLES);
    end
    check_status;
    run(SETUP_ENTRY);

    wrong = 0;
    for (frame = 0; frame < FRAMES; frame = frame + 1) begin
      write_register(INPUT_BASE, INPUT_ADDRESS + frame * INPUT_STEP);
      write_register(OUTPUT_BASE, OUTPUT_ADDRESS + frame * OUTPUT_STEP);
      run(FRAME_ENTRY);
      read_register(CYCLES);
      $display("frame %0d: %0d cycles", frame, value);
      for (word = 0; word < OUTPUT_WORDS; word = word + 1) begin
        want = expected[frame * OUTPUT_WORDS + word];
        got = memory[(OUTPUT_ADDRESS + frame * OUTPUT_STEP) / BUS_BYTES + word];
        for (lane = 0; lane < BUS_BYTES; lane = lane + 1)
          if (want[BUS_BITS + lane] && got[lane*8 +: 8] !== want[lane*8 +: 8]) begin
            wrong = wrong + 1;
            if (wrong <= 10)
              $display("frame %0d, output byte %0d: %02x, but must be %02x", frame, word * BUS_BYTES + lane,
                       got[lane*8 +: 8], want[lane*8 +: 8]);
          end
      end
    end
    if (wrong != 0) fail("wrong output bytes", wrong);
    $display("PASS");
    $finish;
  end
endmodule
